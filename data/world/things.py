"""Facts about things one can touch or hear: colours, kinds, materials, rooms, uses, parts, sounds, young animals.

Each thing stands with the article it takes in a sentence, so wordings need no grammar of their own.
"""

from data.world.relation import Relation, build_relation, read_pairs

THING = ("the thing on the card", "this thing", "the given thing")
ANIMAL = ("the animal on the card", "this animal", "the given animal")

COLOURS = """
grass=green; the sky=blue; snow=white; coal=black; blood=red; a lemon=yellow; a carrot=orange; an aubergine=purple;
milk=white; a flamingo=pink; chocolate=brown; ash=grey; a ripe tomato=red; a banana=yellow; a frog=green; a crow=black;
an elephant=grey; a swan=white; a sunflower=yellow; a cucumber=green; the sea=blue; salt=white; a pumpkin=orange; a
plum=purple; a pig=pink; a fire engine=red; a chick=yellow; a spinach leaf=green; a raven=black; a mouse=grey; a
walnut=brown; a violet=purple; a daisy=white; a rose=red; a cornflower=blue; butter=yellow; a pea=green; tar=black;
lead=grey; a tree trunk=brown; a strawberry=red; ink=black; a sapphire=blue; lavender=purple; a dolphin=grey;
coffee=brown; a bear=brown; a tangerine=orange; a blueberry=blue; a beetroot=purple; a salmon=pink; a goldfish=orange;
gold=golden; honey=golden; wheat=golden; silver=silvery; a herring=silvery; the moon=silvery; a fox=orange; a
shrimp=pink; a cherry blossom=pink
"""
COLOUR_WORDINGS = """
statements: The colour of {x} is {y}. / Everyone can see that {x} has a {y} colour. / A painter takes {y} to paint
    {x}. / If you look at {x}, you see {y}.
questions: What colour is {x}? / Which colour has {x}? / What colour do you see on {x}? / If I paint {x}, what colour
    do I take? / In what colour do we see {x}? / What shade is {x}?
phrases: the colour of {x} / the shade of {x} / what colour {x} has
train questions: What is the usual colour of {x}? / Which colour would a painter take for {x}? / What colour does {x}
    have?
train phrases: the usual colour of {x} / which colour {x} has / the colour we see on {x}
test questions: In which colour would you paint {x}? / What is the colour of {x}?
test phrases: the colour that {x} has / the right colour for {x}
"""

KINDS = """
an apple=fruit; a pear=fruit; a grape=fruit; a mango=fruit; a cabbage=vegetable; a leek=vegetable; an onion=vegetable; a
turnip=vegetable; a hammer=tool; a saw=tool; a chisel=tool; a wrench=tool; an oak=tree; a birch=tree; a willow=tree; a
maple=tree; a tulip=flower; a lily=flower; a poppy=flower; an orchid=flower; an eagle=bird; a sparrow=bird; a
heron=bird; a pigeon=bird; a trout=fish; a cod=fish; a pike=fish; a carp=fish; an ant=insect; a beetle=insect; a
moth=insect; a wasp=insect; a lizard=reptile; a crocodile=reptile; a tortoise=reptile; a viper=reptile; a
violin=instrument; a flute=instrument; a trumpet=instrument; a drum=instrument; a lorry=vehicle; a bicycle=vehicle; a
tram=vehicle; a wagon=vehicle; a chair=furniture; a wardrobe=furniture; a stool=furniture; a bookcase=furniture; a
shirt=clothing; a scarf=clothing; a skirt=clothing; a sweater=clothing; iron=metal; copper=metal; zinc=metal; tin=metal;
tea=drink; lemonade=drink; cider=drink; cocoa=drink; a diamond=gem; an opal=gem; a topaz=gem; an amethyst=gem;
football=sport; tennis=sport; hockey=sport; rowing=sport; a circle=shape; a triangle=shape; a square=shape; a cube=shape
"""
KIND_WORDINGS = """
statements: The kind of {x} is {y}. / We count {x} as {y}. / In the big list, {x} stands under {y}. / By kind, {x}
    belongs to {y}.
questions: What kind of thing is {x}? / To what kind does {x} belong? / Under which heading does {x} stand? / As what
    do we count {x}? / What sort of thing is {x}? / In which group do we put {x}?
phrases: the kind of {x} / the group of {x} / what sort of thing {x} is
train questions: To which kind of things does {x} belong? / What is the kind of {x}? / In what group does {x} stand?
train phrases: the kind to which {x} belongs / what kind of thing {x} is / the heading for {x}
test questions: To which group does {x} belong? / Which kind of thing is {x}?
test phrases: the group to which {x} belongs / the sort of thing that {x} is
"""

MATERIALS = """
a window=glass; a tyre=rubber; a newspaper=paper; a plank=wood; a sweater=wool; a boot=leather; a pillow=feathers; a
snowman=snow; a ring=gold; a rope=hemp; a statue=marble; a castle=stone; a handkerchief=linen; a towel=cotton; a
bucket=zinc; a cork stopper=cork; a tin can=tin; a basket=wicker; a bell=bronze; a marble floor=marble; a bottle=glass;
a horseshoe=iron; a book page=paper; a teacup=porcelain; a blanket=wool; a flower pot=clay; a trumpet=brass; a
kimono=silk; a ladder=wood; a road=asphalt; an omelette=eggs; bread=flour; cheese=milk; wine=grapes; beer=barley;
chocolate=cocoa; a fishing net=string; a scarecrow=straw; a piano key=ivory; a medal=silver; a needle=steel; a jeans
pocket=denim; a glove=leather; a soap bar=fat; a plaster cast=plaster
"""
MATERIAL_WORDINGS = """
statements: The material of {x} is {y}. / We know that {x} is made of {y}. / To make {x} you need {y}. / They use {y}
    for making {x}.
questions: What is {x} made of? / Of what material is {x}? / What do you need to make {x}? / From what do people make
    {x}? / What stuff is in {x}? / Which material do they use for {x}?
phrases: the material of {x} / what {x} is made of / the stuff for making {x}
train questions: Of what is {x} made? / Which material is {x} made of? / What material do people need for {x}?
train phrases: the material used for {x} / the stuff {x} is made of / which material {x} is made of
test questions: What is the material of {x}? / From which material do they make {x}?
test phrases: the material that {x} is made of / what people use to make {x}
"""

ROOMS = """
the kettle=kitchen; the bathtub=bathroom; the pillow=bedroom; the sofa=living room; the lawnmower=shed; the car=garage;
the wine=cellar; the old trunk=attic; the frying pan=kitchen; the toothbrush=bathroom; the wardrobe=bedroom; the
fireplace=living room; the rake=shed; the bicycle=garage; the potatoes=cellar; the cobwebs=attic; the umbrella=hall; the
doormat=hall; the coats=hall; the desk=study; the bookcase=study; the typewriter=study; the washing machine=laundry; the
iron=laundry; the clothes line=laundry; the cot=nursery; the rattle=nursery; the rocking horse=nursery; the
tomatoes=greenhouse; the seedlings=greenhouse; the orchids=greenhouse; the hay=barn; the tractor=barn; the plough=barn;
the coal=cellar; the mirror=bathroom; the alarm clock=bedroom; the piano=living room; the stove=kitchen; the spare
tyre=garage
"""
ROOM_WORDINGS = """
statements: The room for {x} is the {y}. / You find {x} in the {y}. / In our house {x} is kept in the {y}. / Go to the
    {y} and you will see {x}.
questions: Where in the house is {x}? / In which room do you find {x}? / Where is {x} kept? / Where do I go to see
    {x}? / What is the room for {x}? / Where should I look for {x}?
phrases: the room for {x} / the place of {x} in the house / where {x} is kept
train questions: In what room is {x} kept? / Where in the house do we keep {x}? / Which room is the place for {x}?
train phrases: the room where we find {x} / in which room {x} is kept / the place in the house for {x}
test questions: In which room of the house is {x}? / Where do you go to find {x}?
test phrases: the room of the house for {x} / where we find {x} in the house
"""

USES = """
a knife=cutting; a broom=sweeping; a pen=writing; a needle=sewing; a spade=digging; an oven=baking; a ruler=measuring; a
bed=sleeping; a hammer=hitting nails; a saw=sawing wood; a kettle=boiling water; a towel=drying; a brush=painting; a
comb=combing hair; a key=opening locks; a rod=fishing; a telescope=watching stars; a clock=telling time; a lamp=giving
light; a ladder=climbing; a boat=sailing; a scale=weighing; a camera=taking pictures; a phone=calling friends; a
bell=ringing; a whistle=whistling; a basket=carrying; a fridge=keeping food cold; a stove=cooking; a plough=ploughing; a
razor=shaving; an axe=chopping wood; a mop=mopping floors; an iron=ironing shirts; a soap=washing; an umbrella=keeping
dry; a fan=keeping cool; a match=lighting fires; a map=finding the way; a purse=keeping money; a cup=drinking; a
spoon=stirring
"""
USE_WORDINGS = """
statements: The use of {x} is {y}. / People use {x} for {y}. / With {x} you do your {y}. / For {y} you need {x}.
questions: What is {x} used for? / For what do people use {x}? / What do you do with {x}? / What is the use of {x}? /
    Why would you need {x}? / What is {x} good for?
phrases: the use of {x} / what {x} is used for / what you do with {x}
train questions: For what is {x} used? / What do people use {x} for? / What work is {x} good for?
train phrases: what {x} is good for / the common use of {x} / what people do with {x}
test questions: What would you use {x} for? / For what do we need {x}?
test phrases: the purpose of {x} / what we use {x} for
"""

PARTS = """
a wheel=cart; a petal=flower; a branch=tree; a page=book; a finger=hand; a toe=foot; a sail=ship; a chimney=house; a
string=guitar; a pedal=bicycle; a wing=bird; a fin=fish; a hoof=horse; an eyelid=eye; a sleeve=shirt; a button=coat; a
heel=shoe; a blade=knife; a handle=door; a rung=ladder; a tooth=mouth; a nostril=nose; a tusk=elephant; a hump=camel; a
shell=snail; a trigger=gun; a screen=television; a hand that points=clock; a drawer=desk; a step=staircase; a tile=roof;
a tower=castle; an engine=car; a propeller=plane; an anchor=boat; a seed=apple; a stone=plum; a yolk=egg; a crust=bread;
a kernel=nut; a thorn=rose; a mane=lion; a pouch=kangaroo; a stinger=bee; a web=spider; an altar=church
"""
WHOLE_WORDINGS = """
statements: We say {x} is part of a {y}. / A {y} has {x}. / Look at a {y} and you will find {x}. / No {y} is complete
    without {x}.
questions: What is {x} part of? / To what does {x} belong as a part? / Of what is {x} a part? / What thing has {x}? /
    On what do you find {x}? / What whole has {x} as a part?
phrases: the whole that has {x} / what {x} is part of / the thing that has {x}
train questions: Of which thing is {x} a part? / What has {x} as one of its parts? / Which whole is {x} part of?
train phrases: the thing that {x} is part of / what has {x} as a part / the whole to which {x} belongs
test questions: What would {x} be a part of? / Which thing has {x} as a part?
test phrases: the thing of which {x} is a part / the whole that {x} is part of
"""

SOUNDS = """
a dog=bark; a cat=meow; a cow=moo; a sheep=baa; a horse=neigh; a pig=oink; a duck=quack; a hen=cluck; a rooster=crow; a
lion=roar; a wolf=howl; a snake=hiss; a bee=buzz; an owl=hoot; a frog=croak; a mouse=squeak; a bird=chirp; a
donkey=bray; a goose=honk; a turkey=gobble; a dove=coo; an elephant=trumpet; a bear=growl; a raven=caw; a cricket=click;
a clock=tick; a bell=ding; a drum=boom; a door=creak; rain=patter; thunder=rumble; a whip=crack; a kettle=whistle; a
bomb=bang; a balloon=pop; leaves=rustle
"""
SOUND_WORDINGS = """
statements: The sound of {x} is a {y}. / Listen: {x} makes a {y}. / When you hear a {y}, it may be {x}. / We call the
    noise of {x} a {y}.
questions: What sound comes from {x}? / What noise does {x} make? / What do you hear from {x}? / How do we call the
    noise of {x}? / What is the sound of {x}? / Listen to {x}: what do you hear?
phrases: the sound of {x} / the noise of {x} / what sound comes from {x}
train questions: Which noise comes from {x}? / What do we call the sound of {x}? / What sound does one hear from {x}?
train phrases: the sound that comes from {x} / what noise we hear from {x} / the word for the noise of {x}
test questions: What kind of sound do you hear from {x}? / Which sound comes from {x}?
test phrases: the noise that comes from {x} / the word for the sound of {x}
"""

YOUNG = """
a dog=puppy; a cat=kitten; a cow=calf; a sheep=lamb; a horse=foal; a pig=piglet; a duck=duckling; a hen=chick; a
goat=kid; a lion=cub; a goose=gosling; a swan=cygnet; a deer=fawn; a kangaroo=joey; a frog=tadpole; an owl=owlet; an
eagle=eaglet; a hare=leveret; a seal=pup; a butterfly=caterpillar; a fly=maggot; a spider=spiderling; a salmon=smolt; an
eel=elver; a pigeon=squab; a human=baby; a king=prince; a queen=princess; an oak=acorn; a plant=seedling; a
tree=sapling; a rose=bud
"""
YOUNG_WORDINGS = """
statements: The young of {x} is a {y}. / Soon {x} will have a little {y}. / A {y} is the young one of {x}. / We call
    the baby of {x} a {y}.
questions: What is the young of {x}? / What do we call the baby of {x}? / What is the little one of {x}? / What name
    has the young of {x}? / What will {x} have for a baby? / How do we call the young of {x}?
phrases: the young of {x} / the baby of {x} / the name for the little one of {x}
train questions: How is the young one of {x} called? / What is the baby of {x}? / Which word means the young of {x}?
train phrases: the young one of {x} / the word for the baby of {x} / what we call the young of {x}
test questions: What name do we use for the baby of {x}? / Which word means the baby of {x}?
test phrases: the name for the young of {x} / what the baby of {x} is called
"""


def build_thing_relations() -> list[Relation]:
    """The eight relations of this module."""
    return [
        build_relation("colour", read_pairs(COLOURS), COLOUR_WORDINGS, "colour", THING),
        build_relation("kind", read_pairs(KINDS), KIND_WORDINGS, "kind", THING),
        build_relation("material", read_pairs(MATERIALS), MATERIAL_WORDINGS, "made of", THING),
        build_relation("room", read_pairs(ROOMS), ROOM_WORDINGS, "room", THING),
        build_relation("use", read_pairs(USES), USE_WORDINGS, "used for", THING),
        build_relation("whole", read_pairs(PARTS), WHOLE_WORDINGS, "part of", THING),
        build_relation("sound", read_pairs(SOUNDS), SOUND_WORDINGS, "sound", THING),
        build_relation("young", read_pairs(YOUNG), YOUNG_WORDINGS, "young one", ANIMAL),
    ]
