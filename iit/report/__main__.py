"""The summary of a sweep, from the records in its folder: `python -m iit.report FOLDER`."""

import sys

from iit.report.summary import write_summary

if len(sys.argv) != 2:
    sys.exit("python -m iit.report FOLDER: the folder of a sweep (hydra.sweep.dir).")
try:
    write_summary(sys.argv[1])
except (ValueError, OSError) as error:
    sys.exit(str(error))
