"""The load test: python -m scripts.loadtest URL

options, command            the command line, and what it runs
lengths, prompts, plan      which requests are sent, and when
run                         one run: closed or open loop, warm-up, turns of two servers
summary                     figures of the runs of one load
report, html                their table, JSON and page
progress                    progress while a load runs
"""
