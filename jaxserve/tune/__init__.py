"""Finds a configuration for a workload and an objective, on the simulator.

space     the choices, and the configurations that they make
trial     one configuration on the first requests of the workload: what it is worth, or why it fails
halving   many on few requests, few on many
search    the two together: the winner, what each choice of it is worth, why the others lost
"""
