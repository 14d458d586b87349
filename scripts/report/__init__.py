"""What the reports of the bench, the load test and the soak test share.

text        numbers and rows of tables, as plain text
stats       percentiles, fairness, histograms
machine     the machine that a measurement ran on
progress    progress on standard error
page        HTML pages, with report.css
svg         plots as inline SVG
"""
