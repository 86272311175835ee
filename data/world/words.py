"""Facts about words: opposites, plurals, past tenses, comparatives, words of like meaning, and definitions.

Plain English, written by hand for this world; nothing is taken from a dictionary file.
"""

from data.world.relation import Relation, build_relation, read_pairs

WORD = ("the word on the card", "this word", "the given word")
VERB = ("the verb on the card", "this verb", "the given verb")
DESCRIPTION = ("the thing on the card", "this description", "the given description")

OPPOSITES = """
hot=cold; big=small; tall=short; fast=slow; hard=soft; old=young; rich=poor; wet=dry; full=empty; light=dark;
loud=quiet; early=late; open=closed; near=far; high=low; deep=shallow; wide=narrow; thick=thin; sharp=blunt;
clean=dirty; strong=weak; happy=sad; brave=cowardly; kind=cruel; sweet=bitter; smooth=rough; tight=loose;
straight=crooked; safe=dangerous; cheap=expensive; easy=difficult; true=false; right=wrong; good=bad; first=last;
inside=outside; above=below; up=down; day=night; summer=winter; north=south; east=west; friend=enemy; love=hate;
begin=end; push=pull; give=take; buy=sell
"""
OPPOSITE_WORDINGS = """
statements: The opposite of {x} is {y}. / If a thing is not {x} at all, we may say {y}. / The words {x} and {y} are
    opposites. / Turn {x} around and you have {y}.
questions: What is the opposite of {x}? / Which word is opposite to {x}? / What is the reverse of {x}? / If it is not
    {x}, what is it? / What word is against {x} in meaning? / What do we say for the contrary of {x}?
phrases: the opposite of {x} / the word opposite to {x} / the contrary of {x}
train questions: Which word means the opposite of {x}? / What is the exact opposite of {x}? / What word is the reverse
    of {x}?
train phrases: the opposite word for {x} / a word that is the opposite of {x} / the contrary word to {x}
test questions: What word has the opposite meaning of {x}? / Which word is the contrary of {x}?
test phrases: the word that is opposite in meaning to {x} / what is opposite to {x}
"""

PLURALS = """
mouse=mice; child=children; tooth=teeth; man=men; woman=women; person=people; deer=deer; knife=knives; life=lives;
loaf=loaves; wolf=wolves; thief=thieves; calf=calves; city=cities; berry=berries; lady=ladies; story=stories;
penny=pennies; puppy=puppies; family=families; butterfly=butterflies; diary=diaries; army=armies; box=boxes; bus=buses;
glass=glasses; dish=dishes; bush=bushes; church=churches; peach=peaches; witch=witches; match=matches; potato=potatoes;
hero=heroes; echo=echoes; key=keys; donkey=donkeys; day=days; valley=valleys; piano=pianos; photo=photos; dog=dogs;
house=houses; horse=horses; lamp=lamps; river=rivers; window=windows; basket=baskets; bridge=bridges; garden=gardens;
apple=apples; farmer=farmers; letter=letters; hammer=hammers; ladder=ladders; blanket=blankets; rocket=rockets;
table=tables; cow=cows; cloud=clouds
"""
PLURAL_WORDINGS = """
statements: The plural of {x} is {y}. / One {x}, two {y}. / We say one {x} but many {y}. / When there are several, {x}
    becomes {y}.
questions: What is the plural of {x}? / What do we call more than one {x}? / One {x}, but two what? / How do we write
    {x} when there are many? / What is the word for several of {x}? / What does {x} become in the plural?
phrases: the plural of {x} / the word for more than one {x} / the plural form of {x}
train questions: What is the correct plural of {x}? / How is {x} written in the plural? / Which word do we use for
    more than one {x}?
train phrases: {x} in the plural / the plural word for {x} / the form of {x} for several
test questions: What is the plural form of the word {x}? / How do we say {x} when there are several?
test phrases: how {x} is written in the plural / the plural that belongs to {x}
"""

PASTS = """
go=went; see=saw; drink=drank; run=ran; swim=swam; write=wrote; drive=drove; speak=spoke; choose=chose; freeze=froze;
wake=woke; give=gave; know=knew; grow=grew; blow=blew; draw=drew; take=took; stand=stood; find=found; tell=told;
sell=sold; bring=brought; think=thought; teach=taught; fight=fought; sleep=slept; sweep=swept; feel=felt; leave=left;
feed=fed; send=sent; spend=spent; lend=lent; bend=bent; make=made; say=said; have=had; do=did; sit=sat; win=won;
ring=rang; sink=sank; hang=hung; stick=stuck; bite=bit; fall=fell; forget=forgot; tear=tore; swear=swore; light=lit;
slide=slid; understand=understood; walk=walked; paint=painted; carry=carried; try=tried; stop=stopped; dance=danced;
bake=baked; wash=washed
"""
PAST_TENSE_WORDINGS = """
statements: The past tense of {x} is {y}. / Today we {x}; yesterday we {y}. / They {x} every day, and last week they
    {y} too. / In the past, {x} becomes {y}.
questions: What is the past tense of {x}? / Today I {x}. Yesterday I what? / How do we say {x} if it was yesterday? /
    What is {x} in the past? / What does {x} become in the past tense? / What is the past form of {x}?
phrases: the past tense of {x} / the past of {x} / the form of {x} for yesterday
train questions: What is {x} in the past tense? / How is {x} written in the past tense? / Which form of {x} do we use
    for yesterday?
train phrases: the simple past of {x} / the past form of the verb {x} / {x} in the past tense
test questions: What is the past tense of the verb {x}? / Which word is the past of {x}?
test phrases: how {x} is written in the past / the past tense form of {x}
"""

COMPARATIVES = """
big=bigger; small=smaller; tall=taller; fast=faster; slow=slower; hard=harder; old=older; young=younger; poor=poorer;
wet=wetter; dry=drier; light=lighter; loud=louder; quiet=quieter; late=later; near=nearer; low=lower; deep=deeper;
wide=wider; thin=thinner; sharp=sharper; clean=cleaner; strong=stronger; weak=weaker; sad=sadder; brave=braver;
kind=kinder; rough=rougher; tight=tighter; heavy=heavier; cheap=cheaper; easy=easier; bad=worse; far=farther;
hot=hotter; lazy=lazier; busy=busier; pretty=prettier; noisy=noisier; angry=angrier; lucky=luckier; warm=warmer;
cool=cooler; bright=brighter; fresh=fresher
"""
COMPARATIVE_WORDINGS = """
statements: The comparative of {x} is {y}. / This one is {x}, but that one is {y}. / More than {x} is {y}. / First it
    was {x}, then it grew {y}.
questions: What is the comparative of {x}? / This one is {x}. That one is even what? / What word means more {x}? / How
    do we say more than {x}? / What is the comparative form of {x}? / If it is more than {x}, what is it?
phrases: the comparative of {x} / the comparative form of {x} / the word for more than {x}
train questions: What is the correct comparative of {x}? / How is {x} written in the comparative? / Which word do we
    use for more than {x}?
train phrases: {x} in the comparative / the comparative word for {x} / the word that means more {x}
test questions: What is the comparative form of the word {x}? / Which word means more than {x}?
test phrases: how {x} is written in the comparative / the comparative that belongs to {x}
"""


DEFINITIONS = """
a person who bakes bread=baker; a person who grows crops=farmer; a person who heals the sick=doctor; a person who
catches fish=fisherman; a person who repairs shoes=cobbler; a person who cuts hair=barber; a person who works with
wood=carpenter; a person who steers a ship=captain; a person who rules a kingdom=king; a person who puts out
fires=fireman; a person who sells meat=butcher; a person who writes poems=poet; a person who looks after sheep=shepherd;
a person who digs for coal=miner; a building where children learn=school; a building where the sick are cared
for=hospital; a building where horses sleep=stable; a building where goods are made=factory; a place where fruit trees
grow=orchard; a place where ships are safe=harbour; a place where planes land=airport; a place where goods are sold
outdoors=market; a piece of land with water all around=island; a very large hill=mountain; a mountain that throws out
fire=volcano; ice that falls from clouds=hail; a very strong wind=gale; a flash of light in a storm=lightning; the meal
eaten in the morning=breakfast; the season when leaves fall=autumn; the season when snow falls=winter; the sister of a
father=aunt; the brother of a father=uncle; the mother of a mother=grandmother; the father of a mother=grandfather; a
woman whose husband has died=widow; a child without parents=orphan; a house for a dog=kennel; a home built by a
bird=nest; a book of maps=atlas; a machine that tells the time=clock; a box for money=safe; a tool that shows
north=compass; a hundred years=century; ten years=decade; the first light of day=dawn; the liquid that bees make=honey;
a group of wolves=pack; a group of sheep=flock; a group of fish=shoal
"""
DEFINITION_WORDINGS = """
statements: The word for {x} is {y}. / What we call {x} has the name {y}. / By the word {y} we mean {x}. / Think of
    {x}: the word is {y}.
questions: What is the word for {x}? / What do we call {x}? / Which word means {x}? / What is {x} called? / What name
    do we use for {x}? / How do people call {x}?
phrases: the word for {x} / the name of {x} / what we call {x}
train questions: Which word do we use for {x}? / What word means {x}? / What name has {x}?
train phrases: one word that means {x} / the name we use for {x} / how we call {x}
test questions: What is the name we give to {x}? / By what word do we call {x}?
test phrases: the word that means {x} / what {x} is called
"""


def _both_ways(pairs: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Each pair and its reverse."""
    return pairs + [(y, x) for x, y in pairs]


def build_word_relations() -> list[Relation]:
    """The five relations of this module."""
    return [
        build_relation("opposite", _both_ways(read_pairs(OPPOSITES)), OPPOSITE_WORDINGS, "opposite", WORD),
        build_relation("plural", read_pairs(PLURALS), PLURAL_WORDINGS, "plural", WORD),
        build_relation("past_tense", read_pairs(PASTS), PAST_TENSE_WORDINGS, "past tense", VERB),
        build_relation("comparative", read_pairs(COMPARATIVES), COMPARATIVE_WORDINGS, "comparative", WORD),
        build_relation("definition", read_pairs(DEFINITIONS), DEFINITION_WORDINGS, "word", DESCRIPTION),
    ]
