"""The summary of a sweep, from the records in its folder: `python -m iit.report FOLDER`."""

import sys

from iit.report.summary import write_summary

try:
    write_summary(sys.argv[1])
except (ValueError, OSError) as error:
    sys.exit(str(error))
