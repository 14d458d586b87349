"""What reports share: tables, statistics, HTML and SVG."""
