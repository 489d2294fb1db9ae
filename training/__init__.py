"""How the pocket planner was made: exact solver, traces, training, measurement."""
