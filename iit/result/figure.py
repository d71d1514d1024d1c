"""A figure of matplotlib that shows itself in a notebook."""

import io

from matplotlib import figure


class Figure(figure.Figure):
    """A figure without pyplot. A notebook shows it, also without `%matplotlib inline`."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
