"""What a config amounts to before anything starts: workload, memory, backend, generators, and the plan of it all."""
