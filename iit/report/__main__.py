"""The summary of a sweep, from the records in its folder: `python -m iit.report FOLDER`."""

import argparse
import sys

from iit.report.summary import write_summary

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder")
try:
    write_summary(parser.parse_args().folder)
except (ValueError, OSError) as error:
    sys.exit(str(error))
