"""The kinds of rooms of NYU Depth v2, in the data set's own spelling."""

from __future__ import annotations

SCENES = (  # in the order of VPD's published list, whose rows its class embeddings are
    *("printer_room", "bathroom", "living_room", "study", "conference_room", "study_room", "kitchen", "home_office", "bedroom"),
    *("dinette", "playroom", "indoor_balcony", "laundry_room", "basement", "excercise_room", "foyer", "home_storage", "cafe"),
    *("furniture_store", "office_kitchen", "student_lounge", "dining_room", "reception_room", "computer_lab", "classroom", "office"),
    "bookstore",
)
