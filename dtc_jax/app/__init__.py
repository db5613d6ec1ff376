"""The page in the browser and its API: parse what a request brings, call the pipeline, show what it returns.

`limits`, `region`, `history`, `painting` and `events` know nothing of Gradio; `guard` and `layout` are Gradio's.
"""
