"""Run studies beside the pipeline (`make study`): plug-ins, and sizes that nobody trained at."""
