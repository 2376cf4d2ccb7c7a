"""Traces and compiles programs for TPUs on a machine that has none.

In the order in which a program goes through them: `steps` makes it, `tracing`
traces it under a real TPUStrategy, `lowering` makes HLO of it, `compiler` an
executable, and `report` says what is in that. `private` has all that is not
public in TensorFlow and JAX.
"""
