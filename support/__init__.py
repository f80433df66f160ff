"""What the scripts at the top lean on, one idea a file. Nothing here imports train.py or predict.py.

The network           dense.py        fc6 and fc7 as one matrix product
                      start.py        what a network begins with: ImageNet's weights, another training's, or chance
                      tiles.py        images of any size, tile by tile
From files to batches labels.py       what the numbers in a label map mean
                      pictures.py     reading picture files, without PyTorch
                      split.py        which images are held out
                      batches.py      samples read, seen in random views, put together
                      views.py        random views: scale, part, mirror, light
                      counts.py       every file read once, and the pixels of each class counted
                      device.py       the device, its number format, and the way of a batch to it
                      memory.py       less memory, or faster memory, with the same results
Around the loop       options.py      from the command line to the settings
                      setup.py        everything that the loop works with, made ready
                      optimizer.py    SGD, and the learning rate of every step
                      ranks.py        several processes, one run
                      progress.py     how far the loop is
                      divergence.py   nothing that is not finite reaches the disk
                      ending.py       signals, errors, exit status
Files                 errors.py       what a user is told, in one line
                      files.py        files that are whole or absent
                      checkpoint.py   what a checkpoint holds, and how a network or a run comes back from one
                      folder.py       the folder of a run
                      safetensors.py  reading a format of published weights
Pictures and roads    draw.py         overlays, contact sheets, curves
                      figures.py      the drawings of the network in the README
                      jobs.py         the pictures that predict.py is to predict
                      birdseye.py     KITTI Road from above, from the calibration
                      roads.py        synthetic road scenes, of what ground.py and things.py hold
                      bench.py        speed and memory, beside the network as it was published
"""
