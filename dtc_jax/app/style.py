"""Colours, type and words of the page: nothing is loaded from anywhere else."""

from __future__ import annotations

import gradio as gr

PAINT = ("rgb(230, 0, 126)", 0.6)
"""The brush's colour and opacity."""

HEADER = """
<div class="header">
  <h1>Diffuse to Choose</h1>
  <p>See a product in your scene before you buy it: paint over a place, give one photo of the product, and it is painted
  in, in the scene's own light. Then use the result as the next scene and add another.</p>
</div>
"""

EMPTY_RESULT = "<div class='waiting'>The result appears here, beside the scene as it was.</div>"
READY = "<div class='status'>An example is ready: press <b>Place the product</b>.</div>"

CSS = """
.gradio-container {max-width: min(1180px, 100vw) !important; margin: 0 auto !important; padding: 12px !important}
.header h1 {font-size: 1.6rem; font-weight: 700; margin: 4px 0 2px}
.header p {opacity: .8; margin: 0; max-width: 62rem; line-height: 1.45}
.status {padding: 2px 0; line-height: 1.5; min-height: 2.2em}
.status progress {width: 100%; height: 8px; display: block; margin-top: 6px; appearance: none; border: 0}
.status progress::-webkit-progress-bar {background: var(--border-color-primary); border-radius: 4px}
.status progress::-webkit-progress-value {background: #db2777; border-radius: 4px}
.status progress::-moz-progress-bar {background: #db2777}
#preview img {width: 100%; height: 100%; object-fit: contain}
h3 {margin-top: 0 !important; font-size: 1.05rem !important}
.waiting {border: 1px dashed var(--border-color-primary); border-radius: 8px; padding: 48px 16px; text-align: center;
  opacity: .75}
#examples thead {display: none}
#examples tbody {display: flex; flex-wrap: wrap; gap: 8px}
#examples tr {display: flex; border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 4px}
#examples td {padding: 2px}
#examples .table-wrap {border: 0}
#examples img, #rooms img, #products img {height: 64px; width: auto; max-width: 96px; object-fit: contain}
footer {opacity: .7}
@media (max-width: 640px) {
  .header h1 {font-size: 1.3rem}
  .header p {font-size: .92rem}
  #columns {gap: 12px}
  .gradio-container {padding: 4px !important}
  .main.fillable {padding: 8px !important}
  #scene {height: 330px !important}
  #examples img {height: 44px}
}
"""

_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO_FONTS = ("ui-monospace", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Fonts of the visitor's own system: none is fetched."""
    return gr.themes.Default(
        primary_hue="pink",
        font=[gr.themes.Font(name) for name in _FONTS],
        font_mono=[gr.themes.Font(name) for name in _MONO_FONTS],
    )
