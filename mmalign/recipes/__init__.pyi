from mmalign.recipes.offline import offline as offline
from mmalign.recipes.online import online as online
from mmalign.recipes.rounds import rounds as rounds
