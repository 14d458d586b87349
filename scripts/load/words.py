"""Everyday English words, of which random prompts are made."""

from __future__ import annotations

_WORDS = """
a about after again air all also am an and any are as ask at away back be been bell big bird blue
boat book both bread bring but by call came can castle cat child city clear cloud cold come could
dark day deep did do dog door down each early earth east eat egg end even ever every eye face fall
far farm fast father few field find fire first fish five flower fly follow food for forest found
four fox friend from full garden gave get girl give go gold good grass great green ground had hand
has have he hear heart her high hill him his hold home horse hot hour house how hundred ice if in
into iron is it jump just keep kind king knew know lake land large last late leaf learn left less
let letter life light like line listen little live long look made make man many may me men might
milk mind moon more morning most mother mountain move much music must my name near never new next
night no north not now of off often old on once one only open or other our out over page paper part
path people place play point queen quick rain ran read red rest right river road rock room round
run said sail salt same sat saw say sea second see seem seven shall she ship short should show side
silver sing sister sit six sky sleep slow small snow so some song soon south spring stand star
start stay step still stone stood stop story street summer sun sure table take talk tall tell ten
than that the their them then there these they thing think this those thought three through time to
today together told too took top town tree true try turn two under until up upon us very voice wait
walk wall want warm was watch water way we week well went were west what wheel when where which
while white who why will wind window winter wish with woman wood word work world would write year
yellow yes yet you young your
"""
WORDS = tuple(_WORDS.split())
"""Each is one or two tokens in most vocabularies."""
