"""From files of figures to tables, pictures and pages."""

from iit.report.atlas import atlas_cells, atlas_figure
from iit.report.curves import training_curve
from iit.report.figure_file import save_figure
from iit.report.html.page import save_page, write_page
from iit.report.maps import curves, heatmap, map_figure
from iit.report.results import print_results
from iit.report.summary import write_summary
from iit.report.table import Table
from iit.report.tokens import attention_figure, lens_figure

__all__ = [
    "Table",
    "atlas_cells",
    "atlas_figure",
    "attention_figure",
    "curves",
    "heatmap",
    "lens_figure",
    "map_figure",
    "print_results",
    "save_figure",
    "save_page",
    "training_curve",
    "write_page",
    "write_summary",
]
