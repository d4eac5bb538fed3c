"""Curves to zoom in, with values on hover: by Bokeh, an extra whose script comes with the page."""

from collections.abc import Sequence
from typing import Any

from reports.charts import INK, PANELS, Curve, Group, Panels, baselines_of, marks_of, range_of

TOOLS = "box_zoom,xbox_zoom,pan,wheel_zoom,reset,save"
PERPLEXITY = "return Math.exp(tick).toLocaleString('en', {maximumSignificantDigits: 3})"
MARGIN = 75  # pixels at each side, so that the panels are of one width


def draw(panels: Panels, groups: Sequence[Group]) -> tuple[str, str]:
    """HTML of the panels, one above the other, and Bokeh's script; ImportError without Bokeh."""
    from bokeh.embed import components
    from bokeh.layouts import column
    from bokeh.resources import Resources

    drawn = []
    for name, curves in panels.items():
        shared = {"x_range": drawn[0].x_range, "toolbar_location": None} if drawn else {}
        drawn.append(panel(name, curves, **shared))
        if name == "val_loss":
            add_marks(drawn[-1], groups, curves)
        else:
            drawn[-1].y_range.start = 0
    drawn[-1].xaxis.axis_label = "tokens seen (k thousand, m million, b billion)"
    script, place = components(column(*drawn, sizing_mode="stretch_width"))
    library = Resources(mode="inline", components=["bokeh"]).render_js()
    return place + script, library


def panel(name: str, curves: Sequence[Curve], **shared: Any) -> Any:
    """The curves of one quantity against tokens seen, with their bands."""
    from bokeh.models import ColumnDataSource, HoverTool
    from bokeh.plotting import figure

    caption, height = PANELS[name]
    form = {"height": height, "sizing_mode": "stretch_width", "min_border": MARGIN}
    plot = figure(tools=TOOLS, **{"toolbar_location": "above"} | form | shared)
    for curve in curves:
        if curve.spread.any():
            low, high = curve.y - curve.spread, curve.y + curve.spread
            plot.varea(curve.x, low, high, color=curve.color, alpha=0.2)
    for is_bold in (False, True):
        chosen = [curve for curve in curves if curve.is_bold == is_bold]
        columns = {
            "x": [curve.x for curve in chosen],
            "y": [curve.y for curve in chosen],
            "run": [curve.name for curve in chosen],
            "color": [curve.color for curve in chosen],
            "dash": [curve.dash for curve in chosen],
        }
        look = {"color": "color", "line_dash": "dash", "line_width": 2.5 if is_bold else 1}
        lines = plot.multi_line("x", "y", source=ColumnDataSource(columns), **look)
        what = caption if is_bold else "training loss"
        shown = [("run", "@run"), (what, "$snap_y{0.0000}"), ("tokens", "$snap_x{0,0}")]
        plot.add_tools(HoverTool(renderers=[lines], tooltips=shown, line_policy="nearest"))
    plot.min_border_top = plot.min_border_bottom = 5
    paint(plot, caption)
    return plot


def paint(plot: Any, caption: str) -> None:
    """Gives the plot colours for light and dark alike."""
    from bokeh.models import NumeralTickFormatter

    plot.background_fill_color = plot.border_fill_color = None
    plot.outline_line_color = plot.grid.grid_line_color = INK
    plot.grid.grid_line_alpha = 0.3
    plot.xaxis.formatter = NumeralTickFormatter(format="0.[0]a")
    plot.yaxis[0].axis_label = caption
    plot.toolbar.logo = None
    for axis in plot.axis:
        axis.axis_label_text_color = axis.major_label_text_color = INK
        axis.axis_line_color = axis.major_tick_line_color = INK
        axis.minor_tick_line_color = None
        axis.axis_label_text_font_style = "normal"
        axis.axis_label_text_font_size = axis.major_label_text_font_size = "13px"


def add_marks(plot: Any, groups: Sequence[Group], curves: Sequence[Curve]) -> None:
    """Perplexity as a second scale, baselines, the best evaluations, and ends before the end."""
    from bokeh.models import CustomJSTickFormatter, Label, LinearAxis, Span

    plot.y_range.start, plot.y_range.end = range_of(curves)
    formatter = CustomJSTickFormatter(code=PERPLEXITY)
    plot.add_layout(LinearAxis(axis_label="perplexity", formatter=formatter), "right")
    paint(plot, PANELS["val_loss"][0])
    for text, height in baselines_of(groups).items():
        line = {"dimension": "width", "line_dash": "dotted", "line_color": INK}
        plot.add_layout(Span(location=height, **line))
        look = {"text_color": INK, "text_font_size": "12px", "x_units": "screen"}
        plot.add_layout(Label(x=8, y=height, text=text, **look))
    for marker, is_best in (("star", True), ("x", False)):
        if points := marks_of(groups, is_best=is_best):
            plot.scatter(*zip(*points, strict=True), marker=marker, size=16, color=INK)
