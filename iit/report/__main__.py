"""The summary of a sweep, from the records in its folder: `python -m iit.report FOLDER`."""

import argparse
import sys

from iit.report.summary import write_summary

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder")
folder = parser.parse_args().folder
try:
    write_summary(folder)
except (ValueError, OSError) as error:
    sys.exit(str(error))
