"""What a run can do: one function a job, (config, folder, loggers) → rows and facts."""

from iit.job.align import align

__all__ = ["align"]
