"""Names for runs that were given none: brave-otter-07."""

import random

_ADJECTIVES = """
amber bold brave bright brisk calm clever deft eager early fair fleet gentle glad keen kind lively lucid
mellow merry nimble noble patient plain quick quiet ready sharp steady sunny swift tidy warm wise
""".split()
_ANIMALS = """
badger beaver bison crane crow deer dove eagle falcon ferret finch fox gull hare hawk heron ibis jay kite
lark lemur lion lynx marten mole newt otter owl panda puffin raven robin seal shrew stork swan tern toad
vole whale wolf wren
""".split()


def made_up_name() -> str:
    """An adjective, an animal and two digits; never from the seeded dice: two runs of one seed are two runs."""
    dice = random.SystemRandom()
    return f"{dice.choice(_ADJECTIVES)}-{dice.choice(_ANIMALS)}-{dice.randrange(100):02d}"
