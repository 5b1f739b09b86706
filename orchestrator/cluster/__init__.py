"""Jobs on the processors and GPUs of one machine or many, by Ray, and the only place that knows it."""
