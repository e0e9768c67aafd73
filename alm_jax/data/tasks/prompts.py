"""The prompts of APT's tasks (arXiv 2312.00249, table XIV), word for word: ten a task, five of counting."""

TAGGING = (
    "Summarize the audio with key words.",
    "What sound events can be heard in the audio clip?",
    "What auditory incidents can be recognized in the recording?",
    "Which auditory occurrences can be detected?",
    "Which sound occurrences can be perceived?",
    "Present a concise breakdown of the given audio clips.",
    "List the sound events in the audio clip.",
    "Describe the recording with names of sound events.",
    "Enumerate the audio events present in the audio.",
    "Name the auditory incidents in the audio sample.",
)
CAPTIONING = (
    "Summarize the audio succinctly.",
    "Present a short overview of the provided audio samples.",
    "Provide a compact summary of the auditory content.",
    "Offer a brief outline of the audio clips that have been given.",
    "Render a compressed version of the audio's main points.",
    "Describe the audio clip concisely.",
    "Explain the audio clip in a brief and straightforward manner.",
    "Write a terse but informative summary of the sound.",
    "Give a quick overview of the provided audio excerpts.",
    "Outline the given audio samples briefly.",
)
DETECTION = (
    "Pinpoint the presence of {LABEL} with the time stamps.",
    "Indicate the start and end time of the audio event {LABEL}.",
    "Document the exact times the sound {LABEL} taking place.",
    "Specify the time stamps for {LABEL} occurrence.",
    "When the sound {LABEL} happens?",
    "Capture the exact times when {LABEL} is happening.",
    "Describe the time intervals during which {LABEL} takes place.",
    "State the precise moment at which {LABEL} occurs.",
    "What time does the sound event {LABEL} take place?",
    "Capture the beginning and end time of the sound {LABEL}.",
)
RETRIEVAL = (
    "Summarize the audio with key words in the interval of {STT} seconds to {EDT} seconds.",
    "What sound events can be heard from {STT} seconds to {EDT} seconds?",
    "What auditory incidents can be recognized in the recording from {STT} seconds to {EDT} seconds?",
    "Which auditory occurrences can be detected during {STT} seconds to {EDT} seconds?",
    "Which sound occurrences can be perceived between {STT} seconds and {EDT} seconds?",
    "Present a concise breakdown of the recording from {STT} seconds to {EDT} seconds.",
    "List the sound events in the interval of {STT} seconds to {EDT} seconds.",
    "Name the auditory incidents within the {STT} to {EDT} seconds timeframe.",
    "Enumerate the audio events present between {STT} seconds and {EDT} seconds.",
    "Describe the recording with names of sound events within the {STT} to {EDT} seconds timeframe.",
)
COUNTING = (
    "How many times can the sound {LABEL} be heard?",
    "How many instances of the sound {LABEL} can be perceived?",
    "What is the number of times the sound {LABEL} is detectable?",
    "How frequently can one hear the sound {LABEL}?",
    "How often can the sound {LABEL} be perceived?",
)

# Few-shot classification (section V, B): what follows an example, with its label, and the query, with none.
FEW_SHOT = "This is a sound of"

# NLAR (section IV, B; table III): what describes a sound, and what asks for questions about two recordings.
DESCRIBE = "describe the acoustic characteristic of {SOUND} precisely with a sentence less than 10 words"
RENDER = """\
Based on the following two audio clips, generate {NUMBER} different questions that must be derived by summarising or \
comparing both audios and is prohibited to contain the information indicating its answer. The following information is \
provided: the sound events appear in the audio clip, together with its acoustic features, and corresponding onset and \
offset time stamps or frequency in the recordings. The answer should be either a binary one that can be responded by \
‘yes’ or ‘no’, or an open-ended one that can be reply by a number or a single word.

Audios:

- First:
wood creaking (rustic, rhythmic, and creaky) [6 times];
second:
thunder (explosive, rumbling, and reverberating) [1 times];
rain (gentle, pitter-patter, rhythmic) [throughout the recording].

Questions and answers:

- are there 6 wood creaking and 2 thunder sounds in total? - no
- how many wood creaking or thunder are there in total? - 7
- does the second recording more likely to make one feel calm? - yes
- in which recording the events are more frequent? - first
- the frequency of wood creaking in the first recording is 6 times more than the frequency of thunder in the second \
one. - yes

Audios:

- First:
tapping glass (crisp, clear, and tingling sound) [9 times];
second:
water (rapid, and draining water sound) [throughout the recording].

Questions and answers:

- are there 9 tapping glass sounds and 3 water sounds in total? - no
- how many tapping glass or water sounds are there in total? - 10
- does the second recording create a continuous sound throughout? - yes
- in which recording are the sound events more repetitive? - first
- does the second recording sound more dynamic compared to the first recording? - yes

Audios:

{AUDIOS}

Questions and answers:
"""
