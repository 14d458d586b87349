"""What the bench, the load test and the soak test share: an HTTP client, bodies, answers."""
