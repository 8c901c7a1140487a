"""An evaluation as one HTML page that needs nothing else: data (document.py, tables.py), then the page (render.py)."""
