from loadtest_report import Report


def report_html(report: Report) -> str:
    return ""
