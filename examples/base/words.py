# ruff: noqa: E501  (a phrase or a word list is one line)
"""The tables behind `text.py`: word lists, and what customers and the shop say about each topic.

In a phrase, `[a|b]` is a choice and `{x}` a slot: p product, n its invented name, k its kind, o order number,
c customer, f first name, d date, w weekday, a amount, i small number, b part, l colour, r room, t town, e feeling.
"""

KINDS = """kettle toaster blender mixer juicer coffee_grinder coffee_maker rice_cooker slow_cooker egg_boiler oven hob grill
    freezer fridge wine_cooler dishwasher washer dryer tumble_dryer iron steamer vacuum robot_vacuum floor_washer air_purifier
    humidifier dehumidifier fan heater radiator thermostat smoke_alarm door_bell door_lock baby_monitor camera webcam speaker
    soundbar headphones earbuds headset microphone radio record_player projector screen monitor television tablet laptop
    keyboard mouse printer scanner router modem charger power_bank desk_lamp floor_lamp light_strip smart_plug alarm_clock
    watch scale shaver hair_dryer toothbrush massager drill sander hedge_trimmer lawn_mower pressure_washer bread_maker
    ice_maker waffle_iron food_processor hand_mixer air_fryer deep_fryer microwave cooker_hood water_filter sewing_machine
    heat_pad electric_blanket garden_light weather_station car_charger dash_camera bike_light shredder label_maker game_pad
    reader milk_frother pan_set knife_set bin mop lamp stove phone doorstop clock boiler cooler pump"""
PARTS = """lid handle cord plug filter hose brush belt button switch display screen battery seal tray basket blade bowl jug
    knob dial hinge foot wheel cover strap cable lamp sensor fan motor nozzle stand remote adapter case door drawer shelf tank
    valve manual lens panel base clip ring"""
COLOURS = "black white grey red blue green cream silver copper navy mint sand rose yellow orange brown"
ROOMS = "kitchen bathroom bedroom garage office hall cellar attic garden living_room nursery workshop spare_room caravan shed"
WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday"
MONTHS = "January February March April May June July August September October November December"
FEELINGS = (
    "annoyed disappointed unhappy fed_up not_pleased worried confused surprised angry sorry puzzled let_down upset"
)
OPENINGS = """Hi.|Hello.|Hello there.|Good morning.|Good evening.|Hi team.|Dear team,|To the shop.|Sorry to bother you.|Quick question.
    |Hey.|Right then.|Writing again.|Please help.|Good day."""
CLOSINGS = """Thanks.|Thank you.|Please let me know.|Kind regards.|Best wishes.|I look forward to your answer.|Please hurry.
    |What can you do?|Cheers.|Please advise.|Waiting to hear.|Yours.|Many thanks in advance.|What now?"""

TOPICS: dict[str, tuple[list[str], list[str], list[str]]] = {
    "broken part": (
        [
            "[The|One] {b} of my {p} [snapped|cracked|broke off|came apart|is broken] [on {w}|after {i} days|last week|yesterday].",
            "My {p} has a [cracked|broken|bent|split|loose] {b}[| and I am {e}|, it was like that in the box].",
            "I [opened|unpacked] the {p} and the {b} was [in two pieces|smashed|damaged|bent]. It is order {o}.",
            "The {b} on the {n} [does not hold any more|fell off|gave way|has come loose]. [I only used it {i} times|I was careful with it].",
        ],
        [
            "We are sorry about the {b} of your {n}. A new {b} [leaves us|is on its way] on {w}[| at no cost].",
            "A [broken|cracked] {b} is not what you paid for. [Send us a picture|Keep the old part] and we will replace it.",
            "We will send a new {b} for the {n} to you [by {d}|within {i} days].",
        ],
        ["the {b} of the {p} is broken", "damaged {b} on the {n}, [wants|asks for] a new one"],
    ),
    "late delivery": (
        [
            "My {p} [was due|should have come] on {w} and [still is not here|has not arrived|nothing came].",
            "Where is my order {o}? [I have waited {i} days|It was promised for {d}|The tracking page says nothing].",
            "I ordered the {p} on {d} and [no parcel has come|am still waiting|it never showed up].",
            "The [courier|driver|van] [never came|did not turn up] with my {n}. [I stayed at home all day|That is the second time].",
        ],
        [
            "Your order {o} is late and we are sorry. The [courier|carrier] now says {w}.",
            "The parcel with your {n} is [at the depot in {t}|on the road] and should reach you [by|on] {w}.",
            "We have asked the courier about {o} and will [write|call] again on {w}.",
        ],
        ["the {p} has not arrived", "parcel {o} late, promised for {d}"],
    ),
    "refund": (
        [
            "I [sent back|returned] the {p} [on {d}|{i} days ago] and [have not seen my money|want my money back|the refund is not there].",
            "Please [refund|pay back] the {a} for order {o}. [I am {e}|I do not want another one].",
            "When do I get the {a} for my {n}[|, order {o}]?",
            "I [would like|want] my money back for the {p}. [It is not for me|It is no good|I changed my mind].",
        ],
        [
            "We have refunded {a} for order {o}. It [takes|can take] {i} days to reach your account.",
            "Your money for the {n} is on its way: {a}[, back to the card you used|, by {w}].",
            "As soon as the {n} is back with us we will pay {a} to your account.",
        ],
        ["wants {a} back for the {p}", "refund for {o} not received"],
    ),
    "wrong item": (
        [
            "I ordered [a|the] {p} and [got|received] a [{l} lamp|different thing|box of {b}s|thing I did not order].",
            "You sent the wrong [colour|size|model]. I asked for {l} and the {n} [is|came] [pink|another colour|far too big].",
            "This is not [my|the right] {k}. Order {o} says {n} but [the box holds something else|another name is on the box].",
        ],
        [
            "We sent you the wrong [thing|item], sorry. The right {p} [leaves|ships] on {w}.",
            "Please keep the wrong item until our driver [takes|collects] it on {w}. Your {n} is on its way.",
        ],
        ["got the wrong item in place of the {p}", "wrong colour, ordered {l}"],
    ),
    "missing part": (
        [
            "There was no {b} [in the box|with my {p}|in the parcel]. [The list says there should be one|Did you forget it?]",
            "The {b} of the {n} is missing. [Order {o}|I looked twice].",
            "My {p} came without [its|the] {b}[| so I cannot use it].",
        ],
        [
            "The {b} should have been in the box. We will post one to you on {w}.",
            "Sorry that the {b} was missing from your {n}. One is [in the post|on its way] now.",
        ],
        ["no {b} in the box of the {p}", "{b} missing"],
    ),
    "warranty": (
        [
            "Is my {p} still [under warranty|covered]? I bought it [on {d}|{i} months ago].",
            "How long is the warranty [on|for] the {n}? [The receipt is dated {d}|I lost the receipt].",
            "The {n} [gave up|stopped] after {i} months. [Does the warranty cover that|Is that covered]?",
        ],
        [
            "The {n} has a warranty of {i} years from the day you bought it[| so yours is covered].",
            "Yes, your {p} is covered until {d}. Keep the receipt for {o}.",
            "Sorry, the warranty of the {n} ended on {d}. We can [repair|mend] it for {a}.",
        ],
        ["asks [if|whether] the {p} is under warranty", "warranty of the {n}, bought {d}"],
    ),
    "cancel": (
        [
            "Please cancel [my order|order] {o}. [I do not need it any more|I found one cheaper|I ordered twice by mistake].",
            "I [want|need] to cancel the {p} [before it ships|that I ordered on {d}].",
            "Can I still stop order {o}? [The {n} is too big for my {r}|I have changed my mind].",
        ],
        [
            "Order {o} is cancelled. You will not [pay|be charged] anything for the {n}.",
            "The {n} has left us already, so we cannot cancel it. [Refuse|Send back] the parcel and we refund you.",
        ],
        ["wants to cancel {o}", "cancel the {p}, ordered twice"],
    ),
    "address": (
        [
            "I have moved. Please send order {o} to [{t}|my new flat in {t}|my office in {t}].",
            "The address on my order for the {p} is wrong[|, it should be {t}]. [Can you change it|Please fix it]?",
            "I put in the old address for the {n}. We live in {t} now.",
        ],
        [
            "The address for {o} is now {t}. [The parcel comes on {w}|Nothing else to do].",
            "We have changed the address, your {n} will go to {t}.",
        ],
        ["new address for {o}: {t}", "moved to {t}"],
    ),
    "billing": (
        [
            "I was charged [twice|two times] for the {p}[|, {a} each time]. [Order {o}|Please check].",
            "The invoice for {o} says {a} but [the price was lower|I paid less|the shop page showed another price].",
            "My [bank|card] shows {a} [twice|two payments] for one {n}.",
            "Can I have an invoice for order {o}? [My office needs it|The mail had none].",
        ],
        [
            "You were charged twice for {o}. We have given {a} back.",
            "The invoice for your {n} is attached. The sum is {a}.",
            "We checked the payment for {o}: {a} was taken once, the other line will vanish by {w}.",
        ],
        ["charged twice for {o}", "invoice for the {p} over {a}"],
    ),
    "noise": (
        [
            "My {p} [rattles|hums|squeaks|whistles|clicks|is very loud] [when it runs|at night|all day|since {w}].",
            "There is a [grinding|buzzing|rattling] noise [in|from] the {n}. [It wakes the baby|It was quiet at first].",
            "Why is the {n} so loud? [We hear it in the {r}|It sounds like a lorry].",
        ],
        [
            "A [rattle|noise] in the {n} often comes from the {b}. [Tighten it|Clean it] and try again.",
            "Put the {n} on a flat floor and check the {b}. If it is still loud, we will collect it on {w}.",
        ],
        ["the {p} is loud", "noise from the {b} of the {n}"],
    ),
    "dead": (
        [
            "My {p} [will not turn on|is dead|does not start|shows no light|went off and stays off] [since {w}|any more|after {i} days].",
            "The {n} [died|switched itself off] [on {w}|in the middle of dinner|while I used it] and now nothing [works|happens].",
            "I press the button on the {n} and nothing happens. [I tried another plug|The cord looks fine].",
        ],
        [
            "Please unplug the {n}, wait {i} minutes and try again. If it stays dead we will swap it.",
            "Sorry that your {n} does not start. [Try another socket|Hold the button for {i} seconds].",
        ],
        ["the {p} does not turn on", "dead {k} since {w}"],
    ),
    "setup": (
        [
            "How do I [set up|connect|pair|install] my {p}? [The manual is no help|I am not good with such things].",
            "The {n} does not [find|join] my [network|phone|wifi]. [I tried {i} times|The light blinks].",
            "What does the {l} light on the {n} mean? [It blinks {i} times|It came on on {w}].",
            "How [often must I|do I] clean the {b} of my {p}?",
        ],
        [
            "Hold the button on the {n} for {i} seconds until the light is {l}, then [open the app|pair it again].",
            "Clean the {b} of your {n} every {i} weeks with warm water.",
            "A {l} light on the {n} means that the {b} [is full|must be cleaned|is not in place].",
        ],
        ["needs help to set up the {p}", "does not know what the {l} light means"],
    ),
    "discount": (
        [
            "My [code|voucher|coupon] does not work[| for the {p}]. [It should take {i} percent off|The page says it has ended].",
            "I [forgot|could not use] my voucher with order {o}. [Can you still take it off|It is worth {a}]?",
            "Is there [a discount|money off] for [students|teachers|two {k}s]? I want the {n}.",
        ],
        [
            "We have taken {i} percent off order {o}. You pay {a}.",
            "The code ended on {d}. Here is a new one for your {n}.",
        ],
        ["voucher does not work for the {p}", "asks for a discount on the {n}"],
    ),
    "return": (
        [
            "How do I [send back|return] my {p}? [It is too big|I do not like the colour|I got two].",
            "I want to [return|give back] the {n}. Order {o}. [Do I pay the postage|Is there a label]?",
            "The {n} [does not fit in|looks odd in] the {r}. Can I bring it back?",
        ],
        [
            "You may return the {n} within {i} days. The label is in your mail.",
            "Pack the {p} in its box and [hand it to the driver|bring it to our shop in {t}] by {d}.",
        ],
        ["wants to return the {p}", "return label for {o}"],
    ),
    "stock": (
        [
            "When will the {p} be [back in stock|in the shop again]? [I need it by {d}|I have waited for weeks].",
            "Do you [have|sell|stock] the {n} in {l}? [My sister has one|The page shows only {i} left].",
            "Can I buy [a spare|another] {b} for the {n}? [The old one is worn|What does it cost]?",
        ],
        [
            "The {n} in {l} is back on {d}. [We will keep one for you|We can write to you then].",
            "Yes, a {b} for the {n} costs {a}. [Order it on our page|We have {i} left].",
        ],
        ["asks for the {p} in {l}", "wants a spare {b} for the {n}"],
    ),
    "account": (
        [
            "I cannot log in[| to my account]. [The password mail never comes|It says my name is not known]. My order is {o}.",
            "Please [delete|close] my account. [I bought a {p} once|My name is {c}].",
            "How do I change [my mail address|my password|the name on my account]? It should be {c}.",
        ],
        [
            "We sent a new password to you, {f}. It works for {i} hours.",
            "Your account is now in the name of {c}. [Order {o} is in it|Nothing else changed].",
        ],
        ["cannot log in", "wants the account in the name of {c}"],
    ),
    "praise": (
        [
            "I [love|really like] my {p}. [Thank you|It is so quiet|Best thing in my {r}].",
            "Just to say that {f} at your shop was [very kind|a great help]. My {n} works again.",
            "The {n} came {i} days early. [Well done|I am very happy].",
        ],
        ["Thank you, that is kind. Enjoy your {n}!", "We are glad that you like the {p}."],
        ["likes the {p}", "thanks for the help with {o}"],
    ),
    "safety": (
        [
            "My {p} [smells of burning|got very hot|gave off smoke|gave me a shock|sparked] [on {w}|when I plugged it in].",
            "The {b} of the {n} [melted|is scorched|gets too hot to touch]. Is it safe?",
        ],
        [
            "Stop using the {n} and pull the plug. We will collect it on {w} and pay you back {a}.",
            "That must not happen. Please do not use the {n}. [Our safety team|{f}] will call you today.",
        ],
        ["smoke from the {p}", "the {b} of the {n} gets hot: urgent"],
    ),
    "pickup": (
        [
            "[Can|May] my [neighbour|brother|wife|son] [collect|pick up] the {p}? [I am away until {d}|The mail says only me].",
            "Your driver [left|put] my {n} [in the rain|at the wrong door|with a stranger|behind the bin].",
            "I missed the driver on {w}. Can you bring {o} again [after {i}|on another day]?",
        ],
        [
            "The driver will come again on {w}. [Someone must be at home|He rings twice].",
            "Anyone with the number {o} may collect the {n} in {t}.",
        ],
        ["missed the driver on {w}", "someone else will collect {o}"],
    ),
}

POLICIES = """We refund a {k} within {i} days of its return.|A broken {b} is replaced free of charge for {i} years.
    |Parcels over {a} travel insured.|Orders placed before noon leave the same day.|Staff in {t} may give up to {a} back.
    |A {k} that smokes or sparks is collected at once.|Used {b}s cannot be sent back.|Late parcels earn a voucher of {a}.
    |We answer every letter within {i} days.|A customer may cancel until the parcel has left {t}.
    |A new address is accepted until {w}.|If the wrong thing was sent, we pay the postage.|Vouchers end after {i} months.
    |Gifts may be swapped until {d}.|The invoice goes to the address of the buyer.|Repairs of a {k} cost {a} after the warranty.
    |Lost parcels are searched for {i} days, then sent again.|Two charges for one order are paid back on {w}."""
NOTES = """The {n} is a {k} for the {r}.|The {p} comes in {l} and costs {a}.|It weighs {i} kilos and has a {l} {b}.
    |The {b} of the {n} can be washed.|The {n} holds {i} litres.|It runs for {i} hours on one charge.|A spare {b} costs {a}.
    |The {n} is quiet enough for a {r}.|The warranty is {i} years.|In the box: the {n}, a {b} and a manual.
    |Press the {b} for {i} seconds to start the {n}.|Do not use the {k} near water.|Made in {t}.|The older model had no {b}.
    |Clean the {b} every {i} weeks.|Many buyers praise the {b} of the {n}.|The {n} starts by itself at {i}."""

# What the shop calls the matter of a letter: the words of its own piles.
MATTERS = {
    "broken part": "damage|breakage|damaged", "late delivery": "delay|slow post|overdue", "refund": "money back|repayment",
    "wrong item": "mix-up|not as ordered", "missing part": "incomplete|something left out", "warranty": "guarantee|cover",
    "cancel": "stop it|withdrawn", "address": "moving house|where to", "billing": "payment|invoices", "noise": "sounds|too loud",
    "dead": "lifeless|does not run", "setup": "how to|guidance", "discount": "vouchers|price", "return": "sending back|goes back",
    "stock": "supply|spare parts", "account": "login|password", "praise": "kind words|thanks", "safety": "danger|urgent", "pickup": "collection|driver",
}  # fmt: skip
