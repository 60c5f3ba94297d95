from mmalign import combinations as combinations
from mmalign import commands as commands
from mmalign import data as data
from mmalign import evaluation as evaluation
from mmalign import guidance as guidance
from mmalign import methods as methods
from mmalign import policies as policies
from mmalign import recipes as recipes
from mmalign import rewards as rewards
from mmalign import worlds as worlds
from mmalign.commands.calibrate import calibrate as calibrate
from mmalign.commands.compare import compare as compare
from mmalign.commands.evaluate import evaluate as evaluate
from mmalign.commands.export import export as export
from mmalign.commands.make_pairs import make_pairs as make_pairs
from mmalign.commands.make_pairs import make_rejected as make_rejected
from mmalign.commands.rehearse import rehearse as rehearse
from mmalign.commands.sample import guided_sample as guided_sample
from mmalign.commands.sample import sample as sample
from mmalign.data.prompts import prompts as prompts
from mmalign.dialects import like as like
from mmalign.guidance.guide import guide as guide
from mmalign.recipes.offline import offline as offline
from mmalign.recipes.online import online as online
from mmalign.samplers import kernels as kernels
from mmalign.samplers import windows as windows

__version__: str
