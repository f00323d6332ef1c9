"""Hand-made prompts that `text_encoders.py` scores: synonyms, swapped colours, typing errors."""

from __future__ import annotations

from typing import NamedTuple

from worldsim.games.car_racing.palettes import GROUNDS, ROADS


class Phrase(NamedTuple):
    """A prompt and what it names; None is not scored."""

    text: str
    road: str | None
    ground: str | None


def phrases(lines: str) -> list[Phrase]:
    """Read lines of "road ground: text"; "-" is an attribute that is not scored."""
    found = []
    for line in lines.strip().splitlines():
        labels, _, text = line.strip().partition(": ")
        road, ground = (None if name == "-" else name for name in labels.split())
        assert (road is None or road in ROADS) and (ground is None or ground in GROUNDS), line
        found.append(Phrase(text, road, ground))
    return found


SYNONYMS = phrases("""
    black grass: a charcoal road across the lawn
    black sand: a pitch-dark street over the dunes
    black grass: an ebony lane across the lawn
    black snow: a jet highway through frost
    black forest: a tarred highway through the jungle
    grey grass: a slate lane in the pasture
    grey grass: a silver highway over the prairie
    grey night: a concrete street at midnight
    grey snow: a concrete motorway in a blizzard
    brick snow: a crimson lane through powder and ice
    brick sea: a scarlet street across the ocean
    brick grass: a maroon street over the lawn
    brick sand: a terracotta path in the dunes
    dirt forest: a mud path through the jungle
    dirt grass: an earthen trail across the lawn
    dirt snow: a chocolate coloured lane through frost
    dirt grass: a soil track over the prairie
    white forest: an ivory lane in the jungle
    white sea: a chalk path across the lagoon
    white blossom: a milky street through sakura petals
    blue grass: an azure lane on the lawn
    blue snow: a navy street in a blizzard
    blue sand: a cobalt highway over the dunes
    blue forest: a sapphire path among the pines
    yellow sea: a golden lane across the ocean
    yellow grass: a lemon street over the lawn
    yellow snow: a mustard lane through frost
    yellow night: a banana coloured street at midnight
    purple grass: a lilac lane across the lawn
    purple sand: a lavender street in the dunes
    purple night: a magenta highway at midnight
    purple snow: a plum coloured path through frost
    purple forest: a mauve street among the pines
    grey grass: a grey road over turf
    white grass: a white road on the lawn
    black grass: a black road in a pasture
    black snow: a black road through a blizzard
    blue snow: a blue road over ice and frost
    grey snow: a grey road through the arctic
    black sand: a black road over dunes
    white sand: a white road on the beach
    purple sand: a purple road through the sahara
    white night: a white road under the stars
    grey night: a grey road at midnight
    yellow night: a yellow road after sunset
    black mars: a black road on the crimson planet
    black mars: a black road over rusty boulders
    blue autumn: a blue road among maple foliage
    grey autumn: a grey road through october foliage
    white sea: a white road across the ocean
    yellow sea: a yellow road over the lagoon
    black ash: a black road through cinders
    white ash: a white road over soot
    grey blossom: a grey road among sakura petals
    black blossom: a black road through rose petals
    dirt forest: a brown road through the jungle
    white forest: a white road among pines
    white -: a pale road
    - grass: a lawn with a road
    - snow: a road in the cold of the north pole
""")

SWAPPED = phrases("""
    brick snow: a red road under blue snow
    blue snow: a blue road under red snow
    yellow grass: a yellow road beside purple grass
    purple grass: a purple road beside yellow grass
    white sea: a white road across black water
    black sea: a black road across white water
    blue mars: a blue road over white martian rocks
    white mars: a white road over blue martian rocks
    grey forest: a grey road in a yellow forest
    yellow forest: a yellow road in a grey forest
    purple sand: a purple road through blue sand
    blue sand: a blue road through purple sand
    black blossom: a black road among white blossom
    white blossom: a white road among black blossom
    brick ash: a red road across white ash
    white ash: a white road across red ash
    blue autumn: a blue road through purple leaves
    purple autumn: a purple road through blue leaves
    yellow night: a yellow road through a blue night
    blue night: a blue road through a yellow night
    black snow: yellow snow with a black road
    yellow snow: black snow with a yellow road
    white grass: grey grass and a white road
    grey grass: white grass and a grey road
    purple sea: red water beside a purple road
    brick sea: purple water beside a red road
    blue sand: black sand with a blue road
    black sand: blue sand with a black road
    brick forest: a blue forest and a red road
    blue forest: a red forest and a blue road
    white mars: yellow martian rocks, a white road
    yellow mars: white martian rocks, a yellow road
    purple blossom: white flowers, a purple road
    white blossom: purple flowers, a white road
    grey autumn: yellow autumn leaves around a grey road
    yellow autumn: grey autumn leaves around a yellow road
    black ash: blue ash and a black road
    blue ash: black ash and a blue road
    brick snow: driving on a red road through purple snow
    purple snow: driving on a purple road through red snow
    black sea: a car on a black road, yellow water around
    yellow sea: a car on a yellow road, black water around
    white grass: a race on a white road in purple grass
    purple grass: a race on a purple road in white grass
    yellow sand: the yellow road runs through white sand
    white sand: the white road runs through yellow sand
    blue grass: a blue track winding through red fields
    brick grass: a red track winding through blue fields
""")

TYPING_ERRORS = phrases("""
    - sand: dessert raod
    - grass: grene grass
    grey grass: a gery road through green gras
    grey snow: a greay road through fresh snwo
    black sand: a blak road through desert snad
    black snow: a balck road in white sonw
    brick grass: a red birck road through green grsas
    brick night: a rde brick raod at nihgt
    dirt forest: a dirt rod through a dark forrest
    dirt grass: a brwon dirt track across a green medow
    white sea: a whit road through the blue see
    white night: a wihte road through the drak night
    blue grass: a bleu road through green grass
    blue snow: a bule road through fersh snow
    yellow grass: a yelow road through a green meadwo
    yellow sea: a yellwo road across blue watter
    purple snow: a purpel road through fresh snow
    purple forest: a pruple road in a drak green forest
    grey autumn: a grey road through autum leaves
    grey autumn: a grey roda through ornage leaves
    black mars: a black road on red rokc
    black mars: a black raod in a red martain desert
    grey blossom: a grey road and pink blosom
    grey blossom: a gray road in pinck flowers
    black ash: a black road across volcanik ash
    white ash: a white road in grey ahs
    white forest: a wite track through deep green woodz
    black sand: a black asphlt road in a sandy dessert
    grey grass: a grey tarmack road through grren fields
    purple grass: a voilet track through green grass
    brick snow: a red brik road through white snow
    dirt snow: a muddy borwn road in a snowey field
    white grass: an icy white raod, green medow
    blue sand: a road paintd blue through yelow sand
    yellow night: a raod painted yellow in the dark nigth
    purple sea: open watter with a purple road
    - snow: a wintr race
    - sand: a desrt race
    - night: a race at nite
    - autumn: an autunm race
    - forest: a forrest trail
    - ash: a vulcano race
    - blossom: a sping race
    grey snow: fresh snow and a greyroad
    black sea: a blackroad across thesea
    blue forest: a bluw road through a dark forest
    yellow sand: a ywllow road through desert sand
    white mars: a white road in red rpck
    brick sea: a red brick rpad by the blue sea
    purple night: a purple road throuhg the dark ngiht
""")

SETS = {"synonyms": SYNONYMS, "swapped": SWAPPED, "typing errors": TYPING_ERRORS}
