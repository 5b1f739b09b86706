"""What torch's operators do with too many passes over memory: kernels in C for a CPU, in Triton for a GPU."""
