"""Names of the invented people, towns, lands and tales, and a shuffle that any Python gives alike."""

import hashlib

PEOPLE = """
Mara Tom Anna Ben Clara David Emma Felix Greta Hugo Ida Jonas Karl Lena Max Nora Oscar Paula Quentin Rosa Simon Tessa
Ulrich Vera Walter Xenia Yusuf Zoe Alma Boris Celia Dora
""".split()

TOWNS = """
Elmford Oakham Ashby Millbrook Redhill Stonewick Greenfield Harborough Lakeside Marshton Northgate Westbury Foxley Thornbridge
Silverdale Highmoor Kingsport Brightwater Coldwell Deerpark Eastcliff Fairview Goldcrest Hollowdale
""".split()

LANDS = """
Arvenia Boldonia Corland Dalmark Estovia Farnland Gorland Haldia Istria Jorland Kelmark Lorvenia Morland Narvia Ostland
Pelmark Quelia Ravenia Selland Tormark Uvania Velland Wendia Yorland Zelmark Brunia Calmark Drovia
""".split()

CAPITALS = """
Astar Bremor Cardis Dunval Ermin Fosk Galdor Hamra Istel Jarrow Kolven Lastra Mirel Nostra Oldar Prall Quorn Rassel
Stavik Tolna Ulmar Varsk Wexel Yarrin Zorba Brask Corvin Delph
""".split()

RIVERS = """
Aller Brome Corrow Dace Erne Flint Gar Hode Isk Jade Kett Lune Mole Nidd Ouse Pell Quill Rede Swale Tame Ure Vole Wye
Yare Zinn Blythe Cole Dove
""".split()


def shuffled(items: list[str], seed: str) -> list[str]:
    """The items in an order that depends on the seed only.

    Sorted by a hash and not by `random`, because the result must stay the same in every version of Python.
    """
    keys = [hashlib.sha256(f"{seed} {position} {item}".encode()).digest() for position, item in enumerate(items)]
    return [items[position] for position in sorted(range(len(items)), key=keys.__getitem__)]


def dealt(items: list[str], count: int, seed: str) -> list[str]:
    """`count` items, each used as often as any other, dealt out in an order that depends on the seed only."""
    rounds = count // len(items) + 1
    return [item for turn in range(rounds) for item in shuffled(items, f"{seed} {turn}")][:count]
