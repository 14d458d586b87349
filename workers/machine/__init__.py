"""The machine: CPUs, limits, memory, NUMA nodes, and the plan of workers on them."""
