"""From files of figures to tables, pictures and pages."""

from iit.report.atlas import atlas_cells, atlas_figure
from iit.report.curves import training_curve
from iit.report.figure_file import save_figure
from iit.report.maps import curves, heatmap, map_figure
from iit.report.results import print_results
from iit.report.summary import Job, read_jobs, summary, summary_table, write_summary
from iit.report.table import Table
from iit.report.tokens import attention_figure, lens_figure

__all__ = [
    "Job",
    "Table",
    "atlas_cells",
    "atlas_figure",
    "attention_figure",
    "curves",
    "heatmap",
    "lens_figure",
    "map_figure",
    "print_results",
    "read_jobs",
    "save_figure",
    "summary",
    "summary_table",
    "training_curve",
    "write_summary",
]
