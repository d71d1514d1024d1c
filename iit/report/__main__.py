"""The summary of a sweep, from the records in its folder: `python -m iit.report FOLDER`.

With `--html` it is the page of a run, a sweep, an atlas, maps or a steering run instead.
"""

import argparse
import sys

from iit.report import write_page, write_summary

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("folder")
parser.add_argument("--html", action="store_true", help="write the page FOLDER/report.html")
options = parser.parse_args()
try:
    if options.html:
        print(write_page(options.folder))
    else:
        write_summary(options.folder)
except (ValueError, OSError) as error:
    sys.exit(str(error))
