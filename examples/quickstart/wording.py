# ruff: noqa: E501, SIM905  (phrases and word lists read best whole)
"""What the customers of the made-up shop say: `[a|b]` is a choice and `{x}` a slot; per intent, this quarter and the next."""

WEEKDAYS = "monday tuesday wednesday thursday friday saturday sunday".split()
PARTS = "lid handle cord filter hose brush button screen battery tray basket blade dial hinge wheel strap nozzle stand remote shelf".split()
KINDS = "kettle toaster blender mixer iron heater fan radio speaker camera printer lamp drill fridge vacuum monitor scale humidifier oven grill".split()
NEW_KINDS = "scooter dehumidifier projector tablet steamer doorbell shaver massager smartwatch juicer thermostat soundbar".split()

INTENTS: dict[str, list[str]] = {
    "refund": [
        "I sent the {p} back [on {w}|in {w} post|last week] and [the money is not here|my card shows nothing|nobody paid me].",
        "[Please pay me back for|I want my money back for|Kindly return what I paid for] the {p}.",
        "When [do I see|will I get] my money for the {n}? [You have had it since {w}|It went back to you].",
        "[The {n} is not for me|I do not like the {n}], [give me the {a} back|I would rather have my {a}].",
        "The refund [of {a} for|for] the {n} [has not come|is overdue].",
    ],
    "late delivery": [
        "My {p} was [promised|due] [on|for] {w} and [is not here|never came|has not come].",
        "[Where is|What happened to] [my|the] parcel with the {n}? [It should be here|Nothing since {w}].",
        "[Nobody has brought|I am still waiting for] the {p}. [It has been {i} days|You said {i} days].",
        "The tracking of my {n} [has not moved|says nothing|stands still] since {w}.",
        "[How much longer|How long still] for the {p}? [It was to come|I expected it] on {w}.",
    ],
    "broken part": [
        "The {b} of my {p} [snapped|cracked|broke off|is in two pieces].",
        "[There is a crack in|Something tore] the {b} of the {n} [after {i} days|since {w}].",
        "The {b} on the {n} [is bent|fell off|does not hold any more].",
        "I [used|unpacked] the {p} and the {b} [split|was smashed|came apart].",
        "My {p} has a [broken|damaged|cracked] {b}.",
    ],
    "wrong item": [
        "I asked for [a|the] {p} and [you sent|got|the box held] a {x}.",
        "The [label|box] says {n} but inside [is|lies|I found] a {x}.",
        "This is not the {p} [I chose|from your page]. [It is|You sent me] a {x}.",
        "[Wrong colour|Wrong size|Not the model I chose]: my {p} should be [blue|larger|the small one].",
        "You [mixed up|swapped] my {n} [with|and] a {x}.",
    ],
    "missing part": [
        "There was no {b} [in the box of|with] my {p}.",
        "The {b} of the {n} [is not in the box|was left out|is not there].",
        "My {p} came without [its|the|a] {b}.",
        "I [searched|emptied] the box of the {n} and [found no {b}|the {b} was not in it].",
        "[You forgot|Where is] the {b} for my {p}? [The list names it|The rest is here].",
    ],
    "warranty": [
        "Is my {p} still [covered|under warranty] after {i} months?",
        "How long [do you guarantee|is the warranty on] the {n}?",
        "[I lost the receipt of|I have no receipt for] the {p}. [Am I covered|Does the guarantee hold]?",
        "[Until when|How long] [am I covered|does the guarantee run] for the {n}? [I bought it {i} months ago|It is {i} months old].",
        "Does the guarantee of the {p} [pay for|include] a [worn|new] {b}?",
    ],
    "cancel order": [
        "[Please cancel|Cancel] [my order of|the order for] the {p}[|, I found it cheaper|, I ordered two].",
        "[Do not send|Please hold back] the {n}, [I have changed my mind|I no longer need it].",
        "I [want|would like] to [call off|stop] the {p} [before it leaves|that I ordered on {w}].",
        "[Can I still|May I] [stop|cancel] the {n}? [I ordered it by mistake|My wife bought one too].",
        "[Forget|Take back] my order of the {p}, [I do not want it now|it is too dear].",
    ],
    "new address": [
        "[We moved|I have moved], please send the {p} to {t}.",
        "The {n} should go to {t} [and not|instead of] to my old [flat|street|house].",
        "[Change|Please change] the address for my {p}: {t}.",
        "I [typed|gave] the wrong street for the {n}. [Send it|It must go] to {t}.",
        "[Can you bring|Please bring] the {p} to my [office|sister] in {t} [instead|from now on]?",
    ],
    "double charge": [
        "I was charged [twice|two times] for the {p}.",
        "My [bank|card] shows {a} for the {n} [twice|two times].",
        "[Two payments|Two sums of {a}] left my account for one {p}.",
        "You [took|booked] {a} twice for my {n}[| on {w}].",
        "Why do I pay [double|two times] for one {p}? [The bill says {a}|I bought one].",
    ],
    "noise": [
        "My {p} [rattles|hums|squeaks|whistles] [at night|when it runs|since {w}].",
        "[There is a buzz in|A grinding sound comes from] the {n}.",
        "The {n} is [far too loud|so loud that we cannot sleep].",
        "Why does the {p} [hum|click|rattle|whine] [all day|so loudly]?",
        "[Since {w}|For {i} days] the {n} makes a [strange|loud|shrill] sound.",
    ],
    "no power": [
        "My {p} [will not turn on|does not start|is dead] [since {w}|any more|].",
        "I press the button of the {n} and nothing happens.",
        "The {n} [went off|died] on {w} and [stays dark|stays off].",
        "[No light, no sound|No sign of life]: the {p} [is dead|does nothing].",
        "The {p} [gets no power|has no power], [I tried another plug|the plug is fine].",
    ],
    "setup help": [
        "How do I [pair|connect|set up] [my|the] {p}?",
        "The app [does not find|cannot see] my {n}.",
        "What does the [blinking|red|green] light on the {n} mean?",
        "[Which button|What must I press] [starts|resets|pairs] the {p}?",
        "I do not understand the [manual|app|menu] of the {n}. [How do I start|Where do I begin]?",
    ],
}

# The next quarter: lockers, an app with updates, care plans. Four of an intent's phrases bring new surroundings; the
# last two borrow the words of another intent (the shop cancels by itself, a rattle before the break).
NEW_WORDING_OF: dict[str, list[str]] = {
    "refund": [
        "I sent the {p} back through a locker and [my card shows nothing|the money is not here].",
        "[I want my money back for|Please pay me back for] the {p}, the app [promised|offered] {a}.",
        "When will I get my money for the {n}? The locker [has had|took] it [on|since] {w}.",
        "The refund of {a} for the {n} is overdue, [says the app|the app agrees].",
        "You [called off|cancelled] my order of the {p} yourselves, [the {a} stayed with you|yet I paid {a}].",
        "My {n} was cancelled [by your side|by you] on {w}. [And my {a}|What about the {a}]?",
    ],
    "late delivery": [
        "My {p} was promised for {w} and the locker [is empty|has nothing].",
        "Where is my parcel with the {n}? [The locker is empty|No locker has it].",
        "The tracking in the app [stands still|says nothing] for my {n} since {w}.",
        "I am still waiting for the {p} at the locker. It has been {i} days.",
        "Your van took the {n} to my old street in {t}, [it goes round since {w}|and now round again].",
        "Which [locker|shop] in {t} has my {p}? The app does not find it.",
    ],
    "broken part": [
        "The {b} of my {p} [cracked|snapped] [in the locker|on the first ride].",
        "My {p} from the [winter|online] sale has a [cracked|broken] {b}.",
        "The {b} on the {n} fell off [in my bag|on the bus].",
        "There is a crack in the {b} of the {n}, [see my picture|the app has a picture].",
        "First my {p} rattled, now the {b} [hangs loose|lies beside it].",
        "A loud [bang|crack] from the {n} on {w}, the {b} [burst|is gone to bits].",
    ],
    "no power": [
        "My {p} [does not start|is dead] since the update.",
        "The {n} went off on {w} and stays [dark|off], [the app too|even in the app].",
        "I press the button of the {n} and nothing happens, [the app sees nothing|in the app neither].",
        "My {p} will not turn on, [not even with the app|full battery or not].",
        "Since the app update my {n} [shows a black screen|is a brick].",
        "I paired the {p} with the app on {w} and [it never woke again|now it is just black].",
    ],
    "double charge": [
        "I was charged twice for the {p} [in the app|and its care plan].",
        "My card shows {a} for the plan of the {n} two times.",
        "Two payments left my account for one {p}, [one in the app|one for a plan].",
        "Why do I pay double for one {p}? [The app shows {a}|The plan says {a}].",
        "I cancelled the plan for my {p}, [yet {a} left my card again|{a} went off once more].",
        "You paid me back for the {n} on {w} and then [took|booked] the {a} again.",
    ],
}
# How often an intent comes in traffic with its old wording (others: 1); these four hardly come at all.
OLD_WORDING_WEIGHT = {"setup help": 0.1, "cancel order": 0.1, "noise": 0.1, "new address": 0.1}

OPENERS = "Hi.|Hello.|Good morning.|Dear team.|Hello there.|Good evening.|Hey.|To the shop.".split("|")
ASIDES = [
    line.strip()
    for line in """I still have the box.|The colour is nice.|I paid {a} for it.|My neighbour has the same one.|It is for my mother.
    |I bought it on {w}.|We use it every day.|The {b} looks fine.|The driver was friendly.|I live in {t}.|The old one lasted {i} years.
    |It was a gift.|Your page is clear.|I have {i} of them.|I wrote on {w} already.|I like the rest of it.""".split("|")
]
CLOSERS = "Thanks.|Please help.|Best wishes.|What now?|Please answer soon.|Thank you.|Regards.|Waiting for your answer.".split(
    "|"
)

# The house's answers: one policy covers several intents.
POLICIES = {
    "we pay you back for the {n}.": ("refund", "double charge"),
    "the {n} leaves our shop today.": ("late delivery", "wrong item"),
    "a new {b} for the {n} is on its way.": ("broken part", "missing part"),
    "your {n} is covered for two years.": ("warranty",),
    "we have changed the order of the {n}.": ("cancel order", "new address"),
    "please call us about the {n}.": ("noise", "no power", "setup help"),
}
REPLIES = {intent: policy for policy, intents in POLICIES.items() for intent in intents}
