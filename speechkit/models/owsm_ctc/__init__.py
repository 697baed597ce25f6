"""OWSM-CTC: one encoder that transcribes, translates and tells the language, without a decoder.

Source: Peng et al. 2024, "OWSM-CTC: An Open Encoder-Only Speech Foundation Model for Speech Recognition, Translation, and
Language Identification".

    [language or none] [task]  frames of the audio (B, T, F) after subsampling
      |   two prefix frames, then the audio: P + T frames from here on
      | layers 1 ..            --> head --> CTC against  <lang> <task> transcript        (asr_layers)
      |   + condition(softmax)      |                                                       one head for all
      | layers ..              --> head --> CTC against  <lang> <task> what the task asks (task_layers)
      |   + condition(softmax)      |
      |   + cross-attention to a prompt, the text that came before, in every third layer (optional)
      | last layer             --> head --> CTC against  <lang> <task> what the task asks
                                    |
                                    '--> frames 0, 1: language identification; the others: the text

Trained half the time without being told the language, it learns to say it in the prefix frames. Low layers always
transcribe the speech; where the task is to translate, the layers above them reorder.

Differences from the paper: Conformer layers instead of E-Branchformer; the prompt is read after a layer, not inside it;
an absent prompt is an encoded <sos> alone; in decoding, tags among the frames of the audio count as blank, so that neither
text nor times know of them; losses are divided by the number of target tokens.
"""
