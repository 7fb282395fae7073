"""What the videos of the fake federation talk about: words that belong together, so that neighbours have a meaning."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Topic:
    name: str
    category: tuple[int, str]  # as PeerTube numbers and names them
    words: tuple[str, ...]
    actions: tuple[str, ...]


def _topic(name: str, category: tuple[int, str], words: str, actions: str) -> Topic:
    return Topic(name, category, tuple(words.split()), tuple(actions.split()))


MUSIC, VEHICLES, ART, SPORTS = (1, "Music"), (3, "Vehicles"), (4, "Art"), (5, "Sports")
TRAVELS, GAMING, POLITICS, HOW_TO = (6, "Travels"), (7, "Gaming"), (11, "News & Politics"), (12, "How To")
EDUCATION, SCIENCE, ANIMALS, FOOD = (13, "Education"), (15, "Science & Technology"), (16, "Animals"), (18, "Food")

TOPICS = (
    _topic(
        "astronomy",
        SCIENCE,
        "telescope nebula galaxy comet eclipse supernova planet Jupiter Saturn orbit asteroid crater meteor aurora "
        "constellation eyepiece observatory quasar",
        "observing photographing tracking finding",
    ),
    _topic(
        "baking",
        FOOD,
        "sourdough starter crust flour yeast oven brioche croissant dough rye focaccia baguette crumb proofing butter "
        "pâtisserie glaze loaf",
        "baking kneading proving shaping",
    ),
    _topic(
        "beekeeping",
        ANIMALS,
        "hive honey queen swarm frame smoker brood varroa apiary nectar pollen drone comb beeswax colony super forage",
        "inspecting splitting wintering feeding",
    ),
    _topic(
        "cycling",
        SPORTS,
        "bicycle derailleur pedal saddle peloton gravel tandem sprocket chain handlebar climb velodrome tyre spoke "
        "crankset panniers time-trial",
        "riding repairing touring racing",
    ),
    _topic(
        "gardening",
        HOW_TO,
        "compost tomato seedling raised-bed mulch pruning greenhouse perennial hedge allotment soil trellis slug bulb "
        "harvest rosemary courgette",
        "growing planting pruning watering",
    ),
    _topic(
        "jazz",
        MUSIC,
        "saxophone bebop quartet trumpet swing improvisation chord ballad Coltrane double-bass brushes syncopation "
        "blue-note solo standard trombone",
        "playing transcribing improvising listening",
    ),
    _topic(
        "chess",
        GAMING,
        "gambit endgame rook bishop knight checkmate Sicilian opening castling zugzwang pawn grandmaster tournament "
        "blitz fianchetto stalemate",
        "analysing calculating defending sacrificing",
    ),
    _topic(
        "pottery",
        ART,
        "clay kiln wheel glazing stoneware porcelain bisque raku slip teapot vase throwing celadon coil earthenware "
        "trimming mug",
        "throwing firing glazing trimming",
    ),
    _topic(
        "linux",
        SCIENCE,
        "kernel terminal bash systemd Debian package filesystem partition daemon ssh container firewall cron compiler "
        "bootloader driver shell",
        "installing patching scripting booting",
    ),
    _topic(
        "birdwatching",
        ANIMALS,
        "warbler binoculars nest migration kingfisher heron plumage owl kestrel wader feather songbird estuary ringing "
        "goldfinch lapwing hide",
        "spotting recording ringing counting",
    ),
    _topic(
        "railways",
        VEHICLES,
        "locomotive steam carriage signal junction viaduct narrow-gauge tender platform timetable shunting diesel "
        "funicular track sleeper turntable",
        "restoring driving signalling filming",
    ),
    _topic(
        "mountaineering",
        SPORTS,
        "summit glacier crampon rope belay ridge crevasse avalanche ice-axe basecamp altitude couloir bivouac "
        "carabiner traverse moraine",
        "climbing descending roping bivouacking",
    ),
    _topic(
        "knitting",
        HOW_TO,
        "yarn needle stitch purl sweater cable wool merino sock gauge cast-on lace shawl skein mitten rib colourwork",
        "knitting blocking casting-off darning",
    ),
    _topic(
        "history",
        EDUCATION,
        "Rome legion medieval castle crusade manuscript dynasty archaeology siege emperor treaty monastery plague "
        "revolution Byzantine viking parchment",
        "excavating explaining dating reconstructing",
    ),
    _topic(
        "mathematics",
        EDUCATION,
        "theorem proof integral prime topology matrix eigenvalue group conjecture polynomial geometry lemma graph "
        "manifold probability Euler fractal",
        "proving deriving counting visualising",
    ),
    _topic(
        "woodworking",
        HOW_TO,
        "chisel dovetail plane oak walnut mortise tenon lathe workbench sawdust veneer clamp router bandsaw joinery "
        "varnish plywood",
        "carving joining sanding turning",
    ),
    _topic(
        "sailing",
        TRAVELS,
        "jib mainsail anchor harbour keel rudder spinnaker tide mooring catamaran skipper regatta winch halyard gale "
        "lagoon ketch",
        "sailing reefing mooring navigating",
    ),
    _topic(
        "photography",
        ART,
        "aperture shutter lens exposure darkroom negative tripod portrait film-roll bokeh developer viewfinder "
        "contrast enlarger filter daguerreotype",
        "shooting developing printing framing",
    ),
    _topic(
        "elections",
        POLITICS,
        "ballot parliament coalition candidate referendum constituency turnout manifesto debate senator poll majority "
        "mandate campaign minister recount",
        "voting counting debating polling",
    ),
    _topic(
        "aquariums",
        ANIMALS,
        "aquarium coral guppy shrimp plankton reef tank cichlid betta filter-sponge substrate salinity anemone "
        "seahorse driftwood nitrate",
        "aquascaping breeding cycling-the-tank quarantining",
    ),
    _topic(
        "coffee",
        FOOD,
        "espresso roast grinder arabica portafilter crema latte barista pour-over beans cupping aeropress robusta "
        "moka-pot filter-paper café tamper",
        "brewing roasting grinding tasting",
    ),
    _topic(
        "electronics",
        SCIENCE,
        "resistor capacitor solder oscilloscope microcontroller transistor breadboard diode circuit multimeter "
        "Arduino sensor voltage amplifier relay inductor",
        "soldering measuring prototyping debugging",
    ),
    _topic(
        "speedrunning",
        GAMING,
        "speedrun glitch any-percent boss level controller cartridge emulator leaderboard frame-perfect warp category "
        "marathon respawn platformer splits",
        "running routing skipping grinding-out",
    ),
    _topic(
        "opera",
        MUSIC,
        "aria soprano tenor libretto Verdi Wagner overture mezzo chorus baritone recitative curtain Puccini "
        "prima-donna orchestra-pit coloratura",
        "singing staging rehearsing conducting",
    ),
)
BY_NAME = {topic.name: topic for topic in TOPICS}
TITLES = (
    "{Action} with a {a}: {b} and {c}",
    "How I got the {a} right",
    "{A}, {b} and the {c} nobody talks about",
    "{Action} my first {a}",
    "The {a} that changed my {b}",
    "Ten minutes on {a} and {b}",
    "Why your {a} needs a better {b}",
    "{A} versus {b}",
)
SENTENCES = (
    "Today we are {action} and look closely at the {a} and the {b}.",
    "Many of you asked about the {a}, so here is what I know of {b} and {c}.",
    "A {a} is nothing without its {b}.",
    "Next time: {action}, with another {c}.",
    "Recorded on a Sunday with the {a} in the background.",
    "All about {a}, {b}, {c} and {action}.",
)
PLACES = ("corner", "club", "shed", "notebook", "diary", "workshop", "weekly", "lounge", "archive", "hour")
PEOPLE = ("ada", "bruno", "chidi", "dagmar", "emre", "farah", "gwen", "hiro", "ines", "jonas", "katya", "liam")
