// SPDX-License-Identifier: MIT
/* Bytes of a connection, as they come, to the messages in them: framing.py in C. */
#pragma once
#include <stdlib.h>

#include "message.h"

/* size: bytes of a message; for another framing than FIXED of the longest. */
struct frames {
	enum framing framing;
	uint32_t size;
	int broken;	  /* what came does not follow the framing */
	uint32_t have;	  /* bytes of the frame that is not whole yet */
	uint8_t *partial; /* and these */
};

/* Returns 0 if there is no memory. */
static inline int open_frames(struct frames *frames, enum framing framing, uint32_t size)
{
	*frames = (struct frames){ .framing = framing, .size = size, .partial = malloc(size + PREFIX + 1) };
	return frames->partial != NULL;
}

static inline uint32_t length_of(const uint8_t *prefix)
{
	return (uint32_t)prefix[0] << 24 | prefix[1] << 16 | prefix[2] << 8 | prefix[3];
}

/* Bytes of the frame of which `have` are kept and the next are at `data`; 0: they do not tell yet. */
static inline uint64_t frame_size(const struct frames *frames, const uint8_t *data, size_t length)
{
	const uint8_t *newline;

	switch (frames->framing) {
	case FIXED:
		return frames->size;
	case LENGTH:
		if (frames->have >= PREFIX)
			return PREFIX + (uint64_t)length_of(frames->partial);
		return !frames->have && length >= PREFIX ? PREFIX + (uint64_t)length_of(data) : 0;
	default:
		newline = memchr(data, '\n', length);
		return newline ? frames->have + (newline - data) + 1 : 0;
	}
}

/* The next whole message, and its bytes in `size`; NULL: what there is does not suffice, and is kept. */
static inline const uint8_t *next_message(struct frames *frames, const uint8_t **data, size_t *length, uint32_t *size)
{
	const uint32_t before = frames->framing == LENGTH ? PREFIX : 0, behind = frames->framing == LINE;
	const uint64_t most = (uint64_t)before + frames->size + behind;

	while (*length && !frames->broken) {
		uint64_t whole = frame_size(frames, *data, *length);
		size_t part = whole ? whole - frames->have : before ? PREFIX - frames->have : *length;

		if (whole && whole <= most && !frames->have && whole <= *length) { /* where it lies */
			const uint8_t *message = *data + before;

			*data += whole;
			*length -= whole;
			*size = whole - before - behind;
			return message;
		}
		part = part < *length ? part : *length;
		if (whole > most || frames->have + part > most) {
			frames->broken = 1;
			break;
		}
		memcpy(frames->partial + frames->have, *data, part);
		frames->have += part;
		*data += part;
		*length -= part;
		if (whole && frames->have == whole) {
			frames->have = 0;
			*size = whole - before - behind;
			return frames->partial + before;
		}
	}
	return NULL;
}
