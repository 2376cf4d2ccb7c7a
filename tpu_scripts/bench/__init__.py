"""What `tpu_scripts.benchmark` is made of.

`cases` has the shapes, `peers` the optimizers and the ways to call them. Each
runs in a process of its own: `worker` is that process, `workers` the
benchmark's side of it, `*_programs` the steps that it times. `runs` takes the
turns, `figures` makes medians and ratios of the times, `report` and `plot` show
them.
"""
