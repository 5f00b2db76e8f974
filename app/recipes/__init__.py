"""Recipes: how prompts become rows. A recipe is typed and frozen; its stages are what the engine runs."""

from app.recipes.job import Budget, JobSpec
from app.recipes.stages import GenerateStage

__all__ = ["Budget", "GenerateStage", "JobSpec"]
