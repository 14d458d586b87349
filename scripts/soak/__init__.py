"""The soak test: python -m scripts.soak

command             the command line; starts the server and reports
run                 clients, faults and checks of one soak
results             what a soak collects
cases, kinds        the requests
malformed           malformed requests
judge, crashes      which outcomes are right; which of them a crash explains
faults              faults that are injected: workers are killed, stopped and crashed; SIGHUP
server_state        what is known of the server under test
monitor, growth     samples of memory, files and threads; whether they grow
report, html        the report as text and as a page
raw_http            plain HTTP exchanges
"""
