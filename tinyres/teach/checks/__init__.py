"""The checks of the lessons' exercises: a module for each lesson, in it a function for each exercise."""
