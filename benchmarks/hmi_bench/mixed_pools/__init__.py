"""Mixed pools: two runtimes of different precisions behind one gateway, with the same Domain and adapters.

Processes, HTTP, placement and weights are real; adapters are trained on the demonstration's tasks.
"""
