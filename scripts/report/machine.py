"""The machine that a measurement ran on."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from typing import Any

from scripts.report.text import count
from workers.machine.cores import Machine
from workers.machine.cpu_features import cpu_features, cpu_model


def describe_machine(machine: Machine) -> dict[str, Any]:
    """Facts that figures depend on, as JSON values."""
    return {
        "cpu": cpu_model(),
        "usable_cores": len(machine.cores),
        "usable_cpus": machine.allowed,
        "quota": machine.quota,
        "features": list(cpu_features()),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
    }


def machine_table(facts: Mapping[str, Any]) -> str:
    """The facts of `describe_machine`, as a table."""
    quota = "" if facts["quota"] is None else f", quota {facts['quota']:g} CPUs"
    cores = f"{count(facts['usable_cores'], 'core')}, {count(facts['usable_cpus'], 'CPU')}{quota}"
    rows = {
        "CPU": facts["cpu"],
        "usable": cores,
        "features": " ".join(facts["features"]) or "none known",
        "Python": facts["python"],
        "load": f"{facts['load_average']:.2f} on average in the minute before the start",
    }
    return "\n".join(f"  {name:<10}{value}" for name, value in rows.items())
