# ruff: noqa: E501 - an entry stays on its line, as in data/world
"""Rows that look like faults and are none: kind that they are like -> rows of instruction, input and answer.

Written by hand; a finder that flags one of them would throw a good row away.
"""

NEAR_MISSES: dict[str, list[tuple[str, str, str]]] = {
    # Two rows each, or more: one sentence with another number or name, one answer to different questions, one
    # question about different things, one passage that different things are asked of.
    "duplicates": [
        ("Is 17 a prime number?", "", "Yes."),
        ("Is this letter a capital?", "G", "It is."),
        ("Is this letter a capital?", "g", "It is not."),
        ("Do whales breathe air?", "", "Yes."),
        ("Does ice float on water?", "", "Yes."),
        ("Name the capital of Norway.", "", "Oslo"),
        ("Which city hosted the winter games of 1952?", "", "Oslo"),
        ("Classify the following animal as a mammal or a bird.", "Bat", "Mammal"),
        ("Classify the following animal as a mammal or a bird.", "Penguin", "Bird"),
        ("Classify the following animal as a mammal or a bird.", "Dolphin", "Mammal"),
        ("Classify the following animal as a mammal or a bird.", "Ostrich", "Bird"),
        ("Find the plural of the given word.", "mouse", "mice"),
        ("Find the plural of the given word.", "house", "houses"),
    ],
    "near_duplicates": [
        ("Convert 15 miles to kilometres.", "", "15 miles are about 24.1 kilometres."),
        ("Convert 27 miles to kilometres.", "", "27 miles are about 43.5 kilometres."),
        ("Convert 42 miles to kilometres.", "", "42 miles are about 67.6 kilometres."),
        ("What is the square root of 81?", "", "The square root of 81 is 9."),
        ("What is the square root of 64?", "", "The square root of 64 is 8."),
        ("What is the capital of Kenya?", "", "The capital of Kenya is Nairobi."),
        ("What is the capital of Ghana?", "", "The capital of Ghana is Accra."),
        (
            "Tom buys 4 pencils for 3 dollars each and pays with a note of 20 dollars. How much does he get back?",
            "",
            "The pencils cost 4 times 3, that is 12 dollars. Tom gets back 20 minus 12, that is 8 dollars.",
        ),
        (
            "Nina buys 7 pencils for 2 dollars each and pays with a note of 50 dollars. How much does she get back?",
            "",
            "The pencils cost 7 times 2, that is 14 dollars. Nina gets back 50 minus 14, that is 36 dollars.",
        ),
        (
            "Write a birthday greeting for Laura, who turns 30.",
            "",
            "Happy 30th birthday, Laura! May the year bring you joy.",
        ),
        (
            "Write a birthday greeting for Peter, who turns 65.",
            "",
            "Happy 65th birthday, Peter! May the year bring you joy.",
        ),
        (
            "List three ways of saving money on groceries.",
            "",
            "Plan your meals, buy in bulk, and compare prices per unit.",
        ),
        (
            "How can I spend less on food at the supermarket?",
            "",
            "Write a list before you go, choose store brands, and avoid shopping hungry.",
        ),
    ],
    "short_answers": [
        ("Say whether the statement is true or false.", "A triangle has three sides.", "True"),
        ("Say whether the statement is true or false.", "Spiders are insects.", "False"),
        ("How many days has a week?", "", "7"),
        ("Which city is the capital of France?", "", "Paris"),
        ("Is the earth flat?", "", "No"),
        ("Pick the right option.", "The largest planet is (A) Mars, (B) Jupiter, (C) Venus.", "B"),
        ("Which letter follows H in the alphabet?", "", "I"),
        ("Compute 4 - 7.", "", "-3"),
        ("What is 10 % of 420?", "", "42"),
        ("Which share of the pie is left?", "Three of four pieces were eaten.", "25%"),
        ("Give the chemical formula of water.", "", "H2O"),
        ("Solve for the unknown: 2a = 2b + 0, b = 0.", "", "0"),
        ("Name the variable in the equation.", "3x + 4 = 10", "x"),
        ("At what time does the train leave?", "Departure: half past five in the afternoon", "5:30"),
        ("Output 1 for positive and 0 for negative.", "I love this phone!", "1"),
        ("Answer with yes or no: is honey made by bees?", "", "yes"),
        ("What is the price?", "The ticket costs five dollars.", "$5"),
        ("Which grade did she get?", "Her essay was given the best mark there is.", "A+"),
        ("What does this line of Python print?", "print(dict())", "{}"),
        (
            "What does the function return when no row matches?",
            "def find(rows): return [r for r in rows if r > 9]",
            "[]",
        ),
        ("Write an empty tuple in Python.", "", "()"),
        ("Which key starts a search in the editor vim?", "", "/"),
        ("Which operator gives the rest of a division in C?", "", "%"),
        ("Which separator stands between the fields of this row?", "Ann;Ben;Cleo", ";"),
    ],
    "refusals": [
        (
            "Write a short story about a doorman.",
            "",
            "The doorman looked at the boy's muddy boots. \"I'm sorry, but I can't let you in,\" he said. Then he winked "
            "and pointed to the kitchen door, which stood open.",
        ),
        (
            "Write a note to Anna declining her invitation for Saturday.",
            "",
            "Dear Anna, thank you so much for the invitation. I'm sorry, but I can't come on Saturday because my sister "
            "is visiting. I hope we can meet the week after. Love, Ben",
        ),
        (
            "Rewrite the sentence with more feeling.",
            "I look forward to the trip.",
            "I can't wait for the trip to begin!",
        ),
        (
            "Start a speech on seat belts.",
            "",
            "I cannot stress enough how many lives a seat belt saves every single year.",
        ),
        ("Write a slogan of a happy baker.", "", "I am unable to hide it: I love bread!"),
        (
            "Answer this customer, whose parcel came late.",
            "My parcel came two weeks late!",
            "Dear customer, we are sorry to hear that your parcel arrived late. We have refunded the delivery fee and "
            "will look into what went wrong at the depot.",
        ),
        (
            "Comfort a friend.",
            "My dog died yesterday.",
            "I'm so sorry for your loss. He was a wonderful companion, and I am here if you want to talk.",
        ),
        ("Put the sentence into the past tense.", "I can't find my keys.", "I couldn't find my keys."),
        (
            "Explain why penguins do not fly.",
            "",
            "Penguins cannot fly because their wings became flippers for swimming. Their bones are heavy, which helps them "
            "dive but makes it impossible to take off.",
        ),
        (
            "Can I mix bleach with vinegar?",
            "",
            "No, you should never do that: the mixture gives off chlorine gas, which is poisonous.",
        ),
        (
            "Write a line of dialogue for a stubborn sea captain.",
            "",
            '"Turn back? I will not turn back while there is wind in these sails!"',
        ),
        (
            "Give the moral of the fable.",
            "A fox cannot reach the grapes and calls them sour.",
            "It is easy to despise what we cannot have.",
        ),
    ],
    "boilerplate": [
        (
            "What is an AI language model?",
            "",
            "An AI language model is a program that has learned from a large body of text which words are likely to follow "
            "which, and can therefore write, translate and answer questions.",
        ),
        (
            "How are large language models trained?",
            "",
            "Large language models are trained to predict the next word of a text. Afterwards people rate their answers, and "
            "the model is adjusted towards the answers that were liked.",
        ),
        ("Who made GPT-3?", "", "GPT-3 is a large language model that was trained by OpenAI and presented in 2020."),
        (
            "Write the first sentence of a biography of an engineer.",
            "",
            "As an AI engineer at a hospital, Mei built programs that read X-ray images before the doctors came in.",
        ),
        (
            "Discuss how work will change.",
            "",
            "As AI language models become cheaper, many office tasks will be done faster, and people will spend more time "
            "checking texts than writing them.",
        ),
        (
            "Name one risk of using chatbots at school.",
            "",
            "Pupils may trust an AI assistant even where it is wrong, since it answers with the same confidence either way.",
        ),
        ("What does the abbreviation AI stand for?", "", "It stands for artificial intelligence."),
        (
            "Write a riddle about a robot.",
            "",
            "I have no heart, yet I can dance; I have no eyes, yet find my way. What am I? A robot!",
        ),
        (
            "What was the company's latest update?",
            "The firm published its last report in September 2021.",
            "Its last report appeared in September 2021.",
        ),
    ],
    "template_leftovers": [
        (
            "Write a summary with a heading.",
            "The council met on Monday and approved the new bridge.",
            "### Summary\nOn Monday the council approved the bridge.",
        ),
        (
            "Write down a recipe for pancakes in Markdown.",
            "",
            "# Pancakes\n\n### Ingredients\n- 200 g flour\n- 2 eggs\n- 300 ml milk\n\n### Instructions\n1. Whisk everything.\n"
            "2. Fry in butter.\n\n### Notes\nServe at once.",
        ),
        (
            "Outline a plan for an emergency drill.",
            "",
            "## Goals\nEverybody leaves in time.\n\n## Response times\nUnder five minutes.\n\n## Review\nAfter a week.",
        ),
        (
            "Write a Python function that removes the marks of a chat template from a text.",
            "",
            "```python\nimport re\n\ndef strip_marks(text):\n    return re.sub(r'\\[/?INST\\]', '', text).strip()\n```",
        ),
        (
            "Show an old price next to a new one in HTML.",
            "",
            '```html\n<p class="price"><s>$50</s> <strong>$35</strong></p>\n```',
        ),
        ("Make the word bold in HTML.", "hello", "<b>hello</b>"),
        (
            "Write the skeleton of an HTML page.",
            "",
            "<!DOCTYPE html>\n<html>\n<head>\n<title>Page</title>\n</head>\n<body>\n</body>\n</html>",
        ),
        ("Compare the numbers of chromosomes.", "", "Human: 46\nDog: 78\nPea: 14\nFruit fly: 8"),
        ("List the crew of the film.", "", "Director: Ana Ruiz\nAssistant: Tom Bell\nCamera: Li Wei"),
        (
            "Turn the table into a list.",
            "user | rights\nroot | all\nguest | none",
            "- root: all rights\n- guest: no rights",
        ),
        ("Write the shell line that redirects errors to a file.", "", "command 2> errors.txt"),
        (
            "Which operator pipes a value into a function in F#?",
            "",
            "The operator is |> and it stands between the value and the function: `3 |> square`.",
        ),
        ("Write a generic list declaration in Java.", "", "List<String> names = new ArrayList<>();"),
        (
            "Write a short dialogue in a shop.",
            "",
            "Customer: Do you sell stamps?\nClerk: Yes, how many would you like?\nCustomer: Ten, please.",
        ),
    ],
    "other_language": [
        (
            "Translate the sentence into French.",
            "The weather is beautiful today, and we are going to the beach.",
            "Il fait beau aujourd'hui et nous allons à la plage.",
        ),
        (
            "Translate the following text to German.",
            "My brother works in a hospital near the station.",
            "Mein Bruder arbeitet in einem Krankenhaus in der Nähe des Bahnhofs.",
        ),
        (
            "Translate into Spanish: I have lost my keys and cannot open the door.",
            "",
            "He perdido mis llaves y no puedo abrir la puerta.",
        ),
        ('How do you say "good morning, how are you" in Russian?', "", "Доброе утро, как дела?"),
        ("Write the sentence in Japanese.", "I eat an apple every morning.", "私は毎朝りんごを食べます。"),
        (
            "Write a two-line poem in Italian about the sea.",
            "",
            "Il mare canta piano nella sera,\ne porta via la voce della terra.",
        ),
        (
            "Conjugate the Spanish verb hablar in the present tense.",
            "",
            "hablo, hablas, habla, hablamos, habláis, hablan",
        ),
        (
            "Translate this German sentence into English.",
            "Der Zug fährt in zehn Minuten vom dritten Gleis ab.",
            "The train leaves from platform three in ten minutes.",
        ),
        ("Name five German cities.", "", "Berlin, München, Köln, Hamburg, Düsseldorf"),
        ("List four dishes of French cooking.", "", "Ratatouille, bouillabaisse, coq au vin, crème brûlée"),
        ('Which Latin phrase means "I think, therefore I am"?', "", "Cogito, ergo sum."),
        (
            "Explain the Japanese word 木漏れ日.",
            "",
            "The word 木漏れ日 (komorebi) names the light of the sun as it falls through the leaves of trees. English has no "
            "single word for it.",
        ),
        ("Who painted the ceiling in Rome?", "", "Michelangelo di Lodovico Buonarroti Simoni"),
        ("Write a SQL query that lists all customers from Lyon.", "", "SELECT * FROM customers WHERE city = 'Lyon';"),
        ("Simplify the expression.", "(a + b)^2 - (a - b)^2", "4ab"),
    ],
    "encoding_damage": [
        ("Name three Polish writers.", "", "Wisława Szymborska, Stanisław Lem and Bolesław Prus"),
        (
            "Who was the physicist after whom a length is named?",
            "",
            "Anders Jonas Ångström, a Swede: one ångström is 0.1 nm.",
        ),
        ("Write the headline in capital letters.", "Coração e mãe não têm preço", "CORAÇÃO E MÃE NÃO TÊM PREÇO"),
        (
            "Name a Vietnamese mathematician.",
            "",
            "Ngô Bảo Châu, who was given the Fields Medal in 2010; he grew up in Hà Nội.",
        ),
        ("Write a cheerful closing line with emoji.", "", "See you on Sunday — bring cake! 🎂👩‍👩‍👧‍👦✨"),
        (
            "State the boiling point of water and the cost.",
            "",
            "Water boils at 100 °C; heating a litre costs about 2¢ — or 1½ p (£0.015).",
        ),
        ("Write the formula of the golden ratio.", "", "φ = (1 + √5) ⁄ 2 ≈ 1.618"),
        ("Quote the sentence with typographic marks.", "It's \"fine\", isn't it", "“It’s ‘fine’, isn’t it…”"),
        ("Give the French for forest, school and castle.", "", "forêt, école, château"),
        ("Spell the Danish word for island and river.", "", "ø and å"),
        (
            "Name a Turkish city with a dotted letter.",
            "",
            "İstanbul; the word ılık (lukewarm) has the letter without a dot.",
        ),
        ("Write the company's legal line.", "", "© 2023 Åkerlund & Rausing™ — all rights reserved. Art. № 5, §3."),
        ("Write the German word for size in capitals.", "Größe", "GRÖẞE"),
        ("Give the Portuguese word for scope in capitals.", "", "ÂMBITO"),
    ],
}

# A passage that several things are asked of: question -> answer.
PASSAGE = (
    "The lighthouse of Carrow Point was built in 1871 after two ships, the Marigold and the Swift, had been lost on the "
    "reef in one winter. Its first keeper was a widow, Ellen Marsh, who lived in the tower with her three children and "
    "twelve hens. Every evening she carried the oil up a hundred and forty steps, trimmed the wick and wound the clockwork "
    "that turned the lens. In 1903 the lamp was fitted with a mantle, and in 1957 with electric light. Since 1988 no keeper "
    "has lived there; the tower is looked after by a society of the village, which opens it to visitors on summer weekends "
    "and keeps the old logbooks in a glass case beside the door."
)
ASKED_OF_THE_PASSAGE = [
    ("How many steps had the first keeper to climb?", "A hundred and forty."),
    ("Which ships were lost on the reef?", "The Marigold and the Swift."),
    ("Suggest a title for this text.", "The Keepers of Carrow Point"),
    ("When was the lamp changed to electric light?", "In 1957."),
    (
        "Summarize the text in one sentence.",
        "A lighthouse that was built after two wrecks was served by keepers until 1988 and is now kept by the village.",
    ),
    ("Write a question that a visitor might ask.", "May we see the old logbooks that the society keeps?"),
]

# Conversations that open alike and go on differently.
OPENING = ("Hello!", "Hello! What would you like to know?")
CONTINUATIONS = [
    ("How tall is the Eiffel Tower?", "It is 330 metres tall, with its antennas."),
    ("Which bird lays the largest eggs?", "The ostrich does."),
    ("Who wrote Hamlet?", "William Shakespeare wrote it, around the year 1600."),
    ("How long does an egg boil until it is hard?", "About ten minutes."),
]

# Held out, beside them: like rows above, and not the same.
HELD_OUT = [
    ("Convert 33 miles to kilometres.", "", "33 miles are about 53.1 kilometres."),
    ("What is the square root of 49?", "", "The square root of 49 is 7."),
    ("What is the capital of Togo?", "", "The capital of Togo is Lomé."),
    ("Classify the following animal as a mammal or a bird.", "Whale", "Mammal"),
    ("Say whether the statement is true or false.", "A square has five sides.", "False"),
    ("Do dolphins breathe air?", "", "Yes."),
    ("Who looks after the tower today?", PASSAGE, "A society of the village."),
    (
        "Eva buys 9 pencils for 5 dollars each and pays with a note of 50 dollars. How much does she get back?",
        "",
        "The pencils cost 9 times 5, that is 45 dollars. Eva gets back 50 minus 45, that is 5 dollars.",
    ),
]

# Pairs as a ranking of three answers gives them: one prompt, one good answer, two worse ones.
RANKED = [
    (
        "Why does bread rise?",
        "Yeast eats the sugar in the dough and gives off gas, which is caught in the sticky dough and blows it up.",
        ["Because it is put into a warm oven, and everything grows when it is warm.", "Bakers pump air into it."],
    ),
    (
        "Name an animal that sleeps through the winter.",
        "The hedgehog does: it rolls up under leaves in autumn and wakes in spring.",
        ["Some animals sleep in winter, and others fly to the south.", "The swallow sleeps in the mud of ponds."],
    ),
    (
        "How can I remove a red wine stain?",
        "Cover it with salt at once, let it stand for some minutes, then rinse it with cold water and wash it as usual.",
        ["Throw the shirt away and buy a new one.", "Rub it hard with hot water until the stain has spread evenly."],
    ),
]
