from mmalign.policies.scorers.heads.encoded_user import encoded_user as encoded_user
from mmalign.policies.scorers.heads.gated import gated as gated
from mmalign.policies.scorers.heads.ideal_points import ideal_points as ideal_points
from mmalign.policies.scorers.heads.latent_user import latent_user as latent_user
from mmalign.policies.scorers.heads.linear import linear as linear
from mmalign.policies.scorers.heads.mlp import mlp as mlp
from mmalign.policies.scorers.heads.prototypes import prototypes as prototypes
from mmalign.policies.scorers.heads.thought import thought as thought
