"""Fine-tuning towards a symmetry: one list of methods, measured alike on the tasks of applications.

An application gives a `Task`; `experiment.run` measures methods on parts of its training data.
"""
