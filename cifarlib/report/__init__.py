"""The report: what notebooks show (``show``), and the page and the PDF assembled from them."""
