"""What LTU asks (arXiv 2305.10790, sections 3.1 and M).

Of classification, features, captioning and times the first question is the paper's; its paraphrases by GPT-3.5-Turbo
are in OpenAQA alone, those here are our own.
"""

PREFIX = "Closed-ended question: "
"""Before half of the closed-ended questions of the last stage (official `combine_all_open.py`)."""

CLASSIFICATION = (
    "Classify the sound events in the audio clip.",
    "What sounds can be heard in the audio clip?",
    "Identify the sound events in the recording.",
    "Which sound events occur in this audio?",
    "List the sound classes that are present in the audio clip.",
    "Name the sources of sound in this recording.",
    "Recognize the sounds in the audio and output their labels.",
    "What are the labels of this audio clip?",
    "Assign sound labels to the audio clip.",
    "Determine which sound events the audio contains.",
)
FEATURES = (
    "Classify the sound events in the audio clip based on acoustic features.",
    "Use acoustic features to identify the sound events in the audio clip.",
    "Describe the acoustic features of the sounds, and name the sound events.",
    "Which sound events can be told from their acoustic characteristics?",
    "Based on how it sounds, what is each sound event in the recording?",
    "Recognize the sounds in the audio from their acoustic properties.",
    "Give the acoustic features that lead to each sound label.",
    "From the acoustic features, infer which sounds are present in the audio clip.",
    "Name each sound event together with its acoustic characteristics.",
    "What acoustic features are heard, and which sounds do they belong to?",
)
CAPTIONING = (
    "Write an audio caption describing the sound.",
    "Describe the audio clip in a sentence.",
    "Generate a caption for the audio clip.",
    "Give a short description of what is heard.",
    "Summarize the sounds of the recording in one sentence.",
    "Provide an audio caption for this clip.",
    "Put the content of the audio into words.",
    "What is heard in the audio? Answer with a caption.",
    "Compose a sentence that captions the sound.",
    "Caption this recording.",
)
TEMPORAL = (
    "Classify the sound events in the audio clip, also output the timestamp of each audio event.",
    "List all sound events with their start and end times.",
    "Which sounds are heard, and when?",
    "Identify the sound events and the time at which each occurs.",
    "Detect the sound events in the audio, with their timestamps.",
    "Give the label, onset and offset of every sound event.",
    "Locate each sound event of the recording in time.",
    "Recognize the sounds in the audio clip and when they begin and end.",
    "Output the timeline of sound events.",
    "What sound events are in the clip, and at what times?",
)
TEMPORAL_ONE = (
    "When is the sound of {LABEL} heard?",
    "At what time does the sound of {LABEL} occur?",
    "Output the timestamp of the sound of {LABEL}.",
    "Give the start and end time of the sound of {LABEL}.",
    "In which parts of the clip is the sound of {LABEL} heard?",
    "Locate the sound of {LABEL} in the audio clip.",
    "From when to when can one hear the sound of {LABEL}?",
    "What are the onset and offset of the sound of {LABEL}?",
    "Find the time of the sound of {LABEL} in the recording.",
    "During which time is the sound of {LABEL} present?",
)
ORDER = (
    "What is the order of the sound events?",
    "In what order do the sound events begin?",
    "List the sound events in the order of their onsets.",
    "Sort the sounds of the audio clip by when they begin.",
    "What is the sequence of sounds in the recording?",
)
FIRST = (
    "Which sound begins first?",
    "What is the first sound in the audio clip?",
    "Which sound event starts earliest?",
    "What does one hear first?",
    "Name the sound with the earliest onset.",
)
FIRST_OVER = (
    "Which sound begins and ends first?",
    "What sound is the first to begin and the first to end?",
    "Which sound event starts first, and is over first?",
)
LAST = (
    "Which sound begins last?",
    "What is the last sound that begins in the audio clip?",
    "Which sound event starts latest?",
    "Name the sound with the latest onset.",
)
FIRST_OF_TWO = (
    "Which sound begins first, {ONE} or {OTHER}?",
    "Of the sounds of {ONE} and {OTHER}, which starts earlier?",
    "What is heard first: {ONE} or {OTHER}?",
)
NEXT = (
    "Which sound begins after the sound of {LABEL}?",
    "What sound event follows the onset of {LABEL}?",
    "After {LABEL} begins, which sound begins next?",
)

# Acoustic features (section 3.1): ten answers are asked for of each sound class.
DESCRIBE = "describe the acoustic characteristic of {SOUND} sound precisely with a sentence less than 10 words"

# Audio Instruction Generation (section M): word for word, but that it tells what is provided of this clip.
GENERATE = """\
Based on the following audio clip, generate {NUMBER} different types of complex open-ended questions that require \
step-by-step thinking, and corresponding step-by-step answers.
The following information is provided: {INFORMATION}
Questions should be about the audio, e.g., which sound event is recognized and why (e.g., based on its acoustic \
feature), what can be inferred based on the combination of sound events; the temporal relationship between the sound \
events and what can be inferred from that; the potential scenario that such an audio clip could happen, if the audio \
clip is special (e.g., urgent, funny, interesting, abnormal, unique, etc) and why, what mood or atmosphere this audio \
clip conveys, etc.
The more complex and diverse the question, the better.
Format each QA pair in a single line as a JSON dictionary (key "q" for question, and "a" for answer, wrapped with {{ \
and }}). Do not include any other explanation."""
EVENTS = "the sound events appear in the audio clip"
ITS_FEATURES = "together with its acoustic features"
ITS_TIMES = "corresponding onset and offset time stamps"
DESCRIPTION_TOO = "A description of the content of the audio clip is also provided."
DESCRIPTION = "a description of the content of the audio clip."
