"""The widgets of ``explore.ipynb``: filter, compare and train runs in JupyterLab."""
